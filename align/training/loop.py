"""The loop of every training, and the beginning and the end of one that trains a LoRA."""

import logging
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate.utils import broadcast_object_list
from tqdm import tqdm

from align.models.lora import save_lora
from align.runs.folder import log_metrics, read_metrics
from align.training.checkpoints import drop_metrics_after, resume, save_checkpoint
from align.training.groups import nothing_differed
from align.training.judge import HeldOutJudge
from align.training.optimizer import clip_and_step
from align.training.pictures import means_of, score_pictures
from align.training.report import write_report
from align.training.runs import Run, start_trackers
from align.training.stopping import Diverged, Interrupted

log = logging.getLogger(__name__)
Record = dict[str, Any]
OnStep = Callable[[Record], object]


@dataclass(frozen=True)
class TrainResult:
    """A finished run."""

    out: Path
    """The run's folder."""
    lora: Path
    """The last weights, `lora/pytorch_lora_weights.safetensors`."""
    steps: int
    """Updates finished."""
    metrics: list[Record]
    """The records of metrics.jsonl, one an update."""


def fit(
    run: Run,
    losses: Callable[[Run, int], Iterator[Any]],
    figures: Callable[[Run, list[Any]], Record],
    *,
    judge: HeldOutJudge | None = None,
    on_step: OnStep | None = None,
) -> Record:
    """Do all updates that are left; whatever ends them, what has been reached is saved. Returns
    the record of the last one.

    `losses(run, update)` yields an update's loss in parts, each with a tensor `loss`, whose
    gradients add up; `figures(run, parts)` is what the update's record says of them. In the main
    process `on_step(record)` is called after every update; where it returns True the run ends.

    Raises Diverged, saying where, and what `losses` raises.
    """
    c, accelerator, began = run.config, run.accelerator, time.monotonic()
    main, ended, record = accelerator.is_main_process, False, {}
    if main:
        drop_metrics_after(run.folder, run.done)
    start_trackers(run)
    bar = tqdm(total=c.steps, initial=run.done, unit="step", disable=not main)
    try:
        while run.done < c.steps and not ended and not (judge and judge.gave_up(run)):
            started, rate, parts = time.perf_counter(), run.optimizer.param_groups[0]["lr"], []
            run.optimizer.zero_grad()
            for part in losses(run, run.done):
                accelerator.backward(part.loss)
                parts.append(part)
            norm = clip_and_step(run)
            record = {"step": run.done + 1, **figures(run, parts), "grad_norm": norm, "lr": rate}
            record["seconds"] = time.perf_counter() - started
            run.done += 1
            if run.reward is not None and _due(run, c.sample_every):
                record |= _pictures(run, f"step-{run.done:05d}")
            if judge is not None and (_due(run, c.judge_every) or run.done == c.steps):
                record |= judge(run)
            if main:
                _log(run, record)
                ended = on_step is not None and on_step(record) is True
                ended |= time.monotonic() - began > 60 * (c.max_minutes or math.inf)
                _show(bar, record)
                if _due(run, c.checkpoint_every):
                    save(run)
            (ended,) = broadcast_object_list([ended])
    except (Exception, Interrupted) as error:
        if main:
            save(run)
        if isinstance(error, Interrupted | Diverged):  # which all processes have met
            accelerator.wait_for_everyone()
        if isinstance(error, Diverged):
            raise Diverged(
                f"stopped at step {run.done + 1}: {error}; what was reached at step "
                f"{run.done} is saved in {run.folder}"
            ) from error
        raise
    finally:
        bar.close()
    if judge is not None and judge.is_due(run):
        judge(run)
    if main:
        save(run)
    accelerator.wait_for_everyone()
    return record


def begin(run: Run, judge: HeldOutJudge | None) -> None:
    """Resume a LoRA's run if asked; else draw and judge the model as it is."""
    if run.config.resume is not None and resume(run) and judge is not None:
        judge.check_resumed(run)
    main, begins = run.accelerator.is_main_process, "pictures" not in run.course
    unscaled = run.scale if run.scale and not run.scale.moments else None
    if (begins and (main or run.sharded)) or unscaled is not None:
        terms = score_pictures(run, "before" if main and begins else None)
        if begins:
            run.course["pictures"] = means_of(terms)
        if unscaled is not None:
            unscaled.update(terms)
    if judge is not None and "base" not in run.course:
        judge(run)


def finish(run: Run, card: Callable[[Any, Record], str]) -> TrainResult:
    """Draw a trained LoRA's last pictures and write the report; `card(config, report)` is the text
    of the LoRA's card. Raises ValueError where nothing can have been learned."""
    if nothing_differed(run):
        raise ValueError(
            f"in none of {run.done} updates did the reward tell two images of a prompt apart: "
            "nothing was learned"
        )
    after = _pictures(run, "after")
    if run.accelerator.is_main_process:
        write_report(run, after["pictures"], card)
    run.accelerator.wait_for_everyone()
    return TrainResult(
        run.folder,
        run.folder / "lora" / "pytorch_lora_weights.safetensors",
        run.done,
        read_metrics(run.folder),
    )


def save(run: Run) -> None:
    """A checkpoint, the LoRA and its moving average; on the main process."""
    save_checkpoint(run)
    if run.pipe is None:
        return
    save_lora(run.pipe, run.folder / "lora", run.lora_metadata)
    if run.ema is not None:
        run.ema.store(run.parameters)
        run.ema.copy_to(run.parameters)
        save_lora(run.pipe, run.folder / "lora-ema")
        run.ema.restore(run.parameters)


def _pictures(run: Run, name: str) -> Record:
    """Draw the fixed pictures as `images/NAME.png`, for the update's record the means of their
    scores; sharded, no process can draw alone."""
    main = run.accelerator.is_main_process
    if not (main or run.sharded):
        return {}
    terms = score_pictures(run, name if main else None)
    return {"pictures": means_of(terms)}


def _log(run: Run, record: Record) -> None:
    """Append an update's record to metrics.jsonl and the tracker's curves."""
    log_metrics(run.folder, **record)
    curves = {k: v for k, v in record.items() if isinstance(v, float)}
    for group in ("terms", "term_grad_norms", "pictures", "measures"):
        curves |= {f"{group}/{name}": value for name, value in record.get(group, {}).items()}
    run.accelerator.log(curves, step=run.done)


def _show(bar: Any, record: Record) -> None:
    """An update more on the progress bar."""
    shown = {name: f"{record[name]:.4g}" for name in ("loss", "reward") if name in record}
    bar.set_postfix(dict([*shown.items()][-1:]), refresh=False)
    bar.update()


def _due(run: Run, every: int) -> bool:
    return every > 0 and run.done % every == 0
