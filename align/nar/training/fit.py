"""Training on pictures, of the tokenizer and the transformer: its optimizer and its updates' loss.

What update s sees (its pictures, its dropout) follows from the run's seed and s alone, so a run
that was killed and resumed ends with the weights of one that was not, bit for bit.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator
from diffusers.training_utils import EMAModel
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from align.config.nar import NarConvertConfig, NarTokenizerConfig, NarTrainConfig
from align.models.load import torch_device
from align.models.processes import end_training
from align.training.checkpoints import resume
from align.training.loop import OnStep, fit
from align.training.runs import Run, make_accelerator
from align.training.seeding import seeded
from align.training.stopping import Diverged, agreed, stop_signals

Pictured = NarTokenizerConfig | NarTrainConfig | NarConvertConfig
# (model, update, indices of pictures) -> (mean loss, numbers to log)
LossFn = Callable[[nn.Module, int, list[int]], tuple[Tensor, dict[str, float]]]


@dataclass(frozen=True)
class Part:
    """The loss of some of an update's pictures, and what to log of them."""

    loss: Tensor
    logged: dict[str, float]


def open_processes(config: Pictured) -> Accelerator:
    """Accelerate's processes, each with its threads."""
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    return make_accelerator(config, torch_device(config.device))


def make_run(
    config: Pictured,
    folder: Path,
    accelerator: Accelerator,
    model: nn.Module,
    parameter_groups: list[dict],
    contents: dict[str, str],
    *,
    schedule: str = "cosine",
    warmup: int = 20,
    max_grad_norm: float = 1.0,
) -> Run:
    """Prepare a model for its training by AdamW (0.9, 0.95), or for going on where it was."""
    groups = [{"weight_decay": 0.0, **group} for group in parameter_groups]
    optimizer = torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.95))
    rates = LambdaLR(optimizer, lambda taken: lr_factor(schedule, taken, config.steps, warmup))
    model, optimizer = accelerator.prepare(model, optimizer)
    parameters = list(accelerator.unwrap_model(model).parameters())
    run = Run(
        config=config,
        folder=folder,
        accelerator=accelerator,
        model=model,
        parameters=parameters,
        optimizer=optimizer,
        schedule=rates,
        contents=contents,
        max_grad_norm=max_grad_norm,
        ema=EMAModel(parameters, decay=config.ema_decay) if config.ema_decay else None,
    )
    if config.resume is not None:
        resume(run)
    return run


def batch_indices(seed: int, update: int, size: int, count: int) -> list[int]:
    """The pictures of an update: epochs of random permutations, one after another."""
    indices, order, epoch = [], torch.empty(0), -1
    for place in range(update * size, (update + 1) * size):
        if place // count != epoch:
            epoch = place // count
            generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
            order = torch.randperm(count, generator=generator)
        indices.append(int(order[place % count]))
    return indices


def lr_factor(schedule: str, update: int, steps: int, warmup: int) -> float:
    """The learning rate after so many steps, as a share of its peak."""
    done = update / steps
    rise = min(1.0, (update + 1) / warmup) if warmup else 1.0
    if schedule == "constant":
        return rise
    if schedule == "paper-steps":
        return rise * 0.2 ** sum(done >= share for share in (1 / 2, 2 / 3, 5 / 6))
    return rise * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done)))


def train_on_pictures(
    run: Run,
    loss_fn: LossFn,
    count: int,
    *,
    micro_batch_size: int | None = None,
    on_step: OnStep | None = None,
) -> None:
    """Train on `count` pictures, to which `loss_fn` has indices, until the last update, the time
    limit or a signal; whatever was reached is saved.

    Raises:
        Diverged: in any process the loss or the gradient is not a finite number; the state before
            that update is saved.
        KeyboardInterrupt: SIGINT or SIGTERM, in any process, after saving.
    """
    given = {"loss_fn": loss_fn, "count": count, "micro_batch_size": micro_batch_size}
    try:
        with stop_signals() as run.stop_asked:
            fit(run, partial(losses, **given), figures, on_step=on_step)
    finally:
        end_training(run.accelerator)


def losses(
    run: Run, update: int, *, loss_fn: LossFn, count: int, micro_batch_size: int | None
) -> Iterator[Part]:
    """The loss of this process's share of an update's pictures, one forward pass after the other.

    Raises Diverged where it is not finite and Interrupted once somebody asks, in any process.
    """
    c, accelerator = run.config, run.accelerator
    batch = batch_indices(c.seed, update, c.batch_size, count)
    share = batch[accelerator.process_index :: accelerator.num_processes]
    size = min(micro_batch_size or len(share), len(share))
    seed = (c.seed * 1_000_003 + update) * 64 + accelerator.process_index & 0x7FFFFFFF
    run.model.train()
    with seeded(seed), _buffers_kept(run.plain):
        for start in range(0, len(share), size):
            last = start + size >= len(share)
            with accelerator.accumulate(run.model) if last else accelerator.no_sync(run.model):
                with agreed(run):
                    indices = share[start : start + size]
                    loss, logged = loss_fn(run.model, update, indices)
                    if not math.isfinite(value := float(loss.detach())):
                        raise Diverged(f"the loss is {value}")
                yield Part(loss * (len(indices) / len(share)), logged)


def figures(run: Run, parts: list[Part]) -> dict[str, float]:
    """What an update's record says of it, of the main process's pictures."""
    return {"loss": sum(float(part.loss.detach()) for part in parts), **parts[-1].logged}


@contextmanager
def _buffers_kept(model: nn.Module) -> Iterator[None]:
    """Put a model's buffers back where the forward pass, which may move them, has led to nothing:
    a codebook learns in it."""
    kept = [buffer.detach().clone() for buffer in model.buffers()]
    try:
        yield
    except BaseException:
        for buffer, value in zip(model.buffers(), kept, strict=True):
            buffer.data.copy_(value)
        raise
