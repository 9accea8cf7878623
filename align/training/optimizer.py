"""The end of an update: clip the gradient, look at it, step the optimizer and what follows it."""

import math
from typing import Any

import torch
from diffusers.optimization import get_scheduler

from align.training.runs import Run
from align.training.stopping import Diverged

# A gradient scaler starts at 2^16 and halves at every skip: after these many the loss itself is
# scaled down, and what is still not finite is so at any scale.
SKIPS = 20
SCHEDULES = {"constant": "constant_with_warmup", "linear": "linear", "cosine": "cosine"}


def make_schedule(config: Any, optimizer: torch.optim.Optimizer) -> Any:
    """The course of a LoRA's learning rate."""
    return get_scheduler(
        SCHEDULES[config.lr_schedule],
        optimizer,
        num_warmup_steps=config.warmup_steps,
        num_training_steps=config.steps,
    )


def average_gradients(run: Run) -> None:
    """Give every process the mean of all gradients, where no wrapper of the model does."""
    for parameter in run.parameters:
        gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        parameter.grad = run.accelerator.reduce(gradient, reduction="mean")  # pyright: ignore


def clip_and_step(run: Run) -> float:
    """Clip the gradient to `run.max_grad_norm` (0 leaves it) and step the optimizer, the schedule
    and the moving average; returns the gradient's norm before.

    A gradient scaler (float16) passes over a step whose gradient is not finite; `run.skipped`
    counts those in a row. The gradients must be the same in all processes.

    Raises Diverged, before the weights change, where the norm is not finite: without a scaler at
    once, with one at the 20th in a row.
    """
    accelerator = run.accelerator
    norm: Any = accelerator.clip_grad_norm_(run.parameters, run.max_grad_norm or math.inf)
    norm = float(norm)
    run.skipped = 0 if math.isfinite(norm) else run.skipped + 1
    if run.skipped and accelerator.scaler is None:
        raise Diverged(f"the gradient's norm is {norm}")
    if run.skipped == SKIPS:
        raise Diverged(f"the gradient's norm is {norm}, at every scale of {SKIPS} updates in a row")
    run.optimizer.step()
    run.optimizer.zero_grad()
    if not run.optimizer.step_was_skipped:
        run.schedule.step()
        if run.ema is not None:
            run.ema.step(run.parameters)
    return norm


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
    schedule.load_state_dict(state | {"lr_lambdas": [None] * len(rates)})
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
