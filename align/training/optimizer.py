"""The end of an update: clip the gradient, look at it, step the optimizer."""

import math
from typing import Any

from torch import nn

from align.training.stopping import Diverged

# A gradient scaler starts at 2^16 and halves at every skip: after these many the loss itself is
# scaled down, and what is still not finite is so at any scale.
SKIPS = 20


def step_optimizer(
    run: Any, parameters: list[nn.Parameter], max_grad_norm: float
) -> tuple[float, bool]:
    """Clip to `max_grad_norm` (0 leaves them) and step; (the norm before, whether it stepped).

    A gradient scaler (float16) passes over a step whose gradient is not finite; `run.skipped`
    counts those in a row. The gradients must be the same in all processes.

    Raises Diverged, before the weights change, where the norm is not finite: without a scaler at
    once, with one at the 20th in a row.
    """
    accelerator = run.accelerator
    norm: Any = accelerator.clip_grad_norm_(parameters, max_grad_norm or math.inf)
    norm = float(norm)
    run.skipped = 0 if math.isfinite(norm) else run.skipped + 1
    if run.skipped and accelerator.scaler is None:
        raise Diverged(f"the gradient's norm is {norm}")
    if run.skipped == SKIPS:
        raise Diverged(f"the gradient's norm is {norm}, at every scale of {SKIPS} updates in a row")
    run.optimizer.step()
    run.optimizer.zero_grad()
    return norm, not getattr(run.optimizer, "step_was_skipped", False)


def restore_optimizer(optimizer: Any, saved: dict[str, Any]) -> None:
    """Its moments as they were saved; rate and decay stay those of the present settings."""
    optimizer.load_state_dict(
        {"state": saved["state"], "param_groups": optimizer.state_dict()["param_groups"]}
    )


def restore_schedule(schedule: Any, optimizer: Any, steps: int) -> None:
    """A `LambdaLR` after this many steps of its present settings."""
    rates = [
        rate * factor(steps)
        for rate, factor in zip(schedule.base_lrs, schedule.lr_lambdas, strict=True)
    ]
    state = {"last_epoch": steps, "_step_count": steps + 1, "_last_lr": rates}
    schedule.load_state_dict(state | {"lr_lambdas": [None]})
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
