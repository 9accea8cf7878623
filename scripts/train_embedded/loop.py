"""The training loop that the embedded models share: cosine schedule, EMA, checkpoints, resume.

A run ends after `--steps` or `--minutes`, whichever comes first; the learning rate follows the
larger of the two fractions, so a time limit still ends on a decayed rate. Batches depend on
(seed, step) only, so a resumed run sees the data that an uninterrupted one would have seen.
Under torchrun every process computes its own batch and gradients are averaged.
"""

import copy
import json
import math
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


@dataclass(frozen=True)
class LoopConfig:
    work: Path
    """Folder of the checkpoint and the log (kept out of git)."""
    steps: int = 100_000
    minutes: float = 60.0
    learning_rate: float = 1e-3
    warmup_steps: int = 100
    decay_from: float = 0.0
    """Fraction of the run after which the cosine decay begins."""
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    ema_decay: float = 0.995
    checkpoint_minutes: float = 3.0
    threads: int = 2
    seed: int = 0


def learning_rate_factor(config: LoopConfig, step: int, seconds: float) -> float:
    progress = min(1.0, max(step / config.steps, seconds / 60 / config.minutes))
    warmup = min(1.0, (step + 1) / config.warmup_steps)
    late = max(0.0, progress - config.decay_from) / (1 - config.decay_from)
    return warmup * max(0.02, 0.5 * (1 + math.cos(math.pi * late)))


def save_checkpoint(path: Path, state: dict) -> None:
    temporary = path.with_suffix(".tmp")
    torch.save(state, temporary)
    os.replace(temporary, path)


def train(
    model: nn.Module,
    loss_fn: Callable[[int], tuple[Tensor, dict[str, float]]],
    config: LoopConfig,
    *,
    parameters: Iterable[dict] | None = None,
    optimizer: Any = None,
    on_checkpoint: Callable[[nn.Module, int], None] | None = None,
) -> nn.Module:
    """Minimize `loss_fn(step) -> (loss, logged numbers)`; return the EMA copy of `model`."""
    torch.set_num_threads(config.threads)
    config.work.mkdir(parents=True, exist_ok=True)
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = list(parameters) if parameters else [{"params": trained}]
    for group in groups:
        group.setdefault("lr", config.learning_rate)
        group["base_lr"] = group["lr"]
    if optimizer is None:
        optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98), weight_decay=config.weight_decay)
    ema = {k: v.detach().clone() for k, v in model.state_dict().items()}
    step, seconds = 0, 0.0
    path = config.work / "checkpoint.pt"
    if path.exists():
        state = torch.load(path, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        ema, step, seconds = state["ema"], state["step"], state["seconds"]
        print(f"resumed at step {step} after {seconds / 60:.1f} min", flush=True)
    if dist.is_initialized():  # fresh weights may differ between processes
        for tensor in model.state_dict().values():
            dist.broadcast(tensor, 0)
    start, last_save, logged = time.monotonic() - seconds, seconds, {}
    with (config.work / "log.jsonl").open("a") as log:
        while step < config.steps and seconds < config.minutes * 60:
            factor = learning_rate_factor(config, step, seconds)
            for group in optimizer.param_groups:
                group["lr"] = group["base_lr"] * factor
            loss, numbers = loss_fn(step)
            loss.backward()
            average_gradients(model)
            norm = nn.utils.clip_grad_norm_(model.parameters(), config.max_grad_norm)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            step += 1
            update_ema(ema, model, min(config.ema_decay, (1 + step) / (10 + step)))
            seconds = shared_clock(time.monotonic() - start)
            numbers = {"loss": float(loss.detach()), "grad_norm": float(norm), **numbers}
            for key, value in numbers.items():
                logged[key] = 0.98 * logged.get(key, value) + 0.02 * value
            if rank() == 0 and step % 20 == 0:
                record = {"step": step, "minutes": seconds / 60, "lr": factor, **logged}
                log.write(json.dumps({k: round(v, 5) for k, v in record.items()}) + "\n")
                log.flush()
            done = step >= config.steps or seconds >= config.minutes * 60
            if rank() == 0 and (done or seconds - last_save > config.checkpoint_minutes * 60):
                last_save = seconds
                state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
                save_checkpoint(path, {**state, "ema": ema, "step": step, "seconds": seconds})
                if on_checkpoint:
                    on_checkpoint(copy_with(model, ema), step)
    print(f"{step} steps, {seconds / 60:.1f} min, {logged}", flush=True)
    return copy_with(model, ema)


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def average_gradients(model: nn.Module) -> None:
    """Replace every gradient by its mean over the processes, in one flat exchange."""
    if not dist.is_initialized():
        return
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    flat = torch.cat([g.flatten() for g in gradients])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))


def shared_clock(seconds: float) -> float:
    """Rank 0's clock, so that all processes decay and stop together."""
    if not dist.is_initialized():
        return seconds
    clock = torch.tensor([seconds], dtype=torch.float64)
    dist.broadcast(clock, 0)
    return float(clock)


@torch.no_grad()
def update_ema(ema: dict[str, Tensor], model: nn.Module, decay: float) -> None:
    for key, value in model.state_dict().items():
        if value.is_floating_point():
            ema[key].lerp_(value, 1 - decay)
        else:
            ema[key].copy_(value)


def copy_with(model: nn.Module, weights: dict[str, Tensor]) -> nn.Module:
    """A copy of `model` that holds `weights`."""
    copied = copy.deepcopy(model)
    copied.load_state_dict(weights)
    return copied
