"""AlignProp (Prabhudesai et al. 2023, arXiv 2310.03739): LoRA training through the sampler.

`train` is the whole run; `align.training` holds its parts.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from align.alignprop.preferences import loss_of
from align.alignprop.session import name_given, open_session, trained_reward
from align.alignprop.update import train_step
from align.config.train import TrainConfig
from align.models.lora import save_lora
from align.models.processes import end_training
from align.runs.folder import log_metrics, read_metrics
from align.training.checkpoints import (
    drop_metrics_after,
    refuse_other_run,
    resume,
    save_checkpoint,
)
from align.training.groups import nothing_differed
from align.training.judge import HeldOutJudge
from align.training.loop import run_updates
from align.training.pictures import score_pictures
from align.training.report import model_card, write_report
from align.training.runs import Run, start_trackers
from align.training.stopping import clear_memory_errors, stop_signals

log = logging.getLogger(__name__)
OnStep = Callable[[dict[str, Any]], object]
Step = Callable[[int], dict[str, Any]]


@dataclass(frozen=True)
class TrainResult:
    """A finished run."""

    out: Path
    """The run's folder."""
    lora: Path
    """The last weights, `lora/pytorch_lora_weights.safetensors`."""
    steps: int
    """Updates finished."""
    metrics: list[dict[str, Any]]
    """The records of metrics.jsonl, one an update."""


def train(
    config: TrainConfig, *, reward: Any = None, pipe: Any = None, on_step: OnStep | None = None
) -> TrainResult:
    """Train a LoRA that raises `config.reward` by backpropagating it through the sampler.

    `reward` (an expression or a callable of images [b, 3, h, w] in [0, 1] and prompts) and `pipe`
    (a diffusers pipeline, to which the LoRA is added) stand in for what the config names.
    `on_step(record)` is called after every update; where it returns True the run ends well there.
    SIGINT and SIGTERM save and raise KeyboardInterrupt.

    Raises ValueError, TypeError or FileNotFoundError for wrong input; Diverged (ArithmeticError),
    with everything before that update saved, where the reward is no longer a finite number;
    MemoryError, saying what to lower; OSError where the disk is full.
    """
    if config.self_check:
        raise ValueError("self_check trains nothing; call align.alignprop.self_check.self_check")
    if config.dry_run:
        raise ValueError("dry_run trains nothing; call align.alignprop.memory.plan")
    config = name_given(config, reward, pipe)
    refuse_other_run(config)
    if config.memory and pipe is None:
        from align.alignprop.memory import plan  # it imports what only planning needs

        config, _ = plan(config, trained_reward(config, reward=reward))
    with stop_signals() as stop_asked, clear_memory_errors():
        judge = HeldOutJudge(config, everywhere=config.shard) if config.judge else None
        session = open_session(config, reward=reward, pipe=pipe)
        if config.cache_embeddings:
            session.embed.keep([*session.prompts.prompts, *(judge.prompts if judge else ())])

        def step(update: int) -> dict[str, Any]:
            return train_step(session, update, stop_asked, loss_of(config))

        return carry_out(session, judge, step, model_card, on_step)


def carry_out(
    session: Run,
    judge: HeldOutJudge | None,
    step: Step,
    card: Callable[[Any, dict[str, Any]], str],
    on_step: OnStep | None = None,
) -> TrainResult:
    """A whole run of any kind of model: resume, updates by `step(number)`, judge, save, report.

    `step` returns the update's record; `card(config, report)` is the text of the LoRA's card.
    """
    try:
        _begin(session, judge)
        _fit(session, judge, step, on_step)
        return _finish(session, judge, card)
    finally:
        end_training(session.accelerator)


def _begin(session: Run, judge: HeldOutJudge | None) -> None:
    """Resume if asked; else draw and judge the model as it is."""
    if session.config.resume is not None and resume(session):
        log.info("resumed at step %d of %d", session.done, session.config.steps)
        if judge is not None:
            judge.check_resumed(session)
    main, course = session.accelerator.is_main_process, session.course
    if main:
        drop_metrics_after(session.folder, session.done)
    start_trackers(session)
    everyone = main or session.together  # sharded, no process can draw alone
    begins = "pictures" not in course
    unscaled = session.scale if session.scale and not session.scale.moments else None
    if (begins and everyone) or unscaled is not None:
        terms = score_pictures(session, "before" if main and begins else None)
        if begins:
            course["pictures"] = {name: scores.mean().item() for name, scores in terms.items()}
        if unscaled is not None:
            unscaled.update(terms)
    if judge is not None and "base" not in course:
        judge(session)


def _fit(session: Run, judge: HeldOutJudge | None, step: Step, on_step: OnStep | None) -> None:
    """The updates. Whatever ends them, what has been reached is saved."""
    if judge is not None and judge.gave_up(session):
        return

    def look(record: dict[str, Any]) -> bool:
        record |= _look(session, judge)
        return judge is not None and judge.gave_up(session)

    def tell(record: dict[str, Any]) -> bool:
        _log(session, record)
        return on_step is not None and on_step(record) is True

    run_updates(session, step, save=lambda: _save(session), look=look, tell=tell, shown="reward")
    if nothing_differed(session):
        if session.accelerator.is_main_process:
            _save(session)
        raise ValueError(
            f"in none of {session.done} updates did the reward tell two images of a prompt apart: "
            "nothing was learned"
        )


def _look(session: Run, judge: HeldOutJudge | None) -> dict[str, Any]:
    """Pictures and judgment where they are due after this update, for its record."""
    c, record = session.config, {}
    main = session.accelerator.is_main_process
    if _due(session, c.sample_every) and (main or session.together):
        terms = score_pictures(session, f"step-{session.done:05d}" if main else None)
        record["pictures"] = {name: scores.mean().item() for name, scores in terms.items()}
    if judge is not None and (_due(session, c.judge_every) or session.done == c.steps):
        record |= judge(session)
    return record


def _log(session: Run, record: dict[str, Any]) -> None:
    """Append an update's record to metrics.jsonl and the tracker's curves."""
    log_metrics(session.folder, **record)
    curves = {k: v for k, v in record.items() if isinstance(v, float)}
    for group in ("terms", "term_grad_norms", "pictures"):
        curves |= {f"{group}/{name}": value for name, value in record.get(group, {}).items()}
    session.accelerator.log(curves, step=session.done)


def _finish(
    session: Run, judge: HeldOutJudge | None, card: Callable[[Any, dict[str, Any]], str]
) -> TrainResult:
    """Judge what has not been judged, save everything, draw the last pictures, write the report."""
    if judge is not None and judge.is_due(session):
        judge(session)
    main = session.accelerator.is_main_process
    terms = score_pictures(session, "after" if main else None) if main or session.together else {}
    if main:
        after = {name: scores.mean().item() for name, scores in terms.items()}
        _save(session)
        write_report(session, after, card)
    session.accelerator.wait_for_everyone()
    return TrainResult(
        session.folder,
        session.folder / "lora" / "pytorch_lora_weights.safetensors",
        session.done,
        read_metrics(session.folder),
    )


def _save(session: Run) -> None:
    """The LoRA, its moving average and a checkpoint; on the main process."""
    save_checkpoint(session)
    save_lora(session.pipe, session.folder / "lora", session.lora_metadata)
    if session.ema is not None:
        session.ema.store(session.parameters)
        session.ema.copy_to(session.parameters)
        save_lora(session.pipe, session.folder / "lora-ema")
        session.ema.restore(session.parameters)


def _due(session: Run, every: int) -> bool:
    return every > 0 and session.done % every == 0
