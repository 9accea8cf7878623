"""AlignProp (Prabhudesai et al. 2023, arXiv 2310.03739): LoRA training through the sampler."""

from typing import Any

from align.alignprop.card import model_card
from align.alignprop.nft import first_spread
from align.alignprop.session import name_given, open_session, trained_reward
from align.alignprop.update import figures, losses
from align.config.train import METHODS, TrainConfig
from align.models.processes import end_training
from align.training.checkpoints import refuse_other_run
from align.training.judge import HeldOutJudge
from align.training.loop import OnStep, TrainResult, begin, finish, fit
from align.training.stopping import clear_memory_errors, stop_signals


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
        run = open_session(config, reward=reward, pipe=pipe)
        run.stop_asked = stop_asked
        if config.cache_embeddings:
            run.sampler.embed.keep([*run.prompts.prompts, *(judge.prompts if judge else ())])
        try:
            begin(run, judge)
            if "advantage" in METHODS[config.method].settings and "spread" not in run.course:
                run.course["spread"] = first_spread(run)
            fit(run, losses, figures, judge=judge, on_step=on_step)
            return finish(run, model_card)
        finally:
            end_training(run.accelerator)
