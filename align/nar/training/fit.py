"""The training loop of the tokenizer and the transformer: updates, average, checkpoints, resume.

What update s sees (its pictures, its dropout) follows from the run's seed and s alone, so a run
that was killed and resumed ends with the weights of one that was not, bit for bit.
"""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from align.config.nar import NarConvertConfig, NarTokenizerConfig, NarTrainConfig
from align.models.load import torch_device
from align.models.precision import fast_bfloat16
from align.models.processes import end_training, open_accelerator
from align.nar.training.checkpoints import save_checkpoint
from align.runs.folder import log_metrics, open_run
from align.training.checkpoints import drop_metrics_after
from align.training.loop import run_updates
from align.training.optimizer import step_optimizer
from align.training.seeding import seeded
from align.training.stopping import Diverged, agree, stop_signals

# (model, update, indices of pictures) -> (mean loss, numbers to log)
LossFn = Callable[[nn.Module, int, list[int]], tuple[Tensor, dict[str, float]]]


@dataclass
class Fit:
    """The state of a run."""

    config: NarTokenizerConfig | NarTrainConfig | NarConvertConfig
    folder: Path
    accelerator: Accelerator
    model: nn.Module  # as the accelerator wrapped it
    optimizer: Any
    average: AveragedModel | None
    count: int  # pictures
    contents: dict[str, str]  # hashes of what settings name, by the setting
    done: int = 0  # updates
    stepped: int = 0  # of them, those whose step was taken
    skipped: int = 0  # of those in a row that were not
    saved: int = -1  # the step of the newest checkpoint

    @property
    def plain(self) -> nn.Module:
        """The model without wrappers."""
        return self.accelerator.unwrap_model(self.model)

    @property
    def result(self) -> nn.Module:
        """What to use: the moving average where there is one."""
        return self.average.module if self.average is not None else self.plain


def make_accelerator(config: NarTokenizerConfig | NarTrainConfig) -> Accelerator:
    """Accelerate's processes and precision. ValueError where the batch does not split."""
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    device = torch_device(config.device)
    accelerator = open_accelerator(
        cpu=device.type == "cpu",
        mixed_precision=config.mixed_precision or ("bf16" if fast_bfloat16(device.type) else "no"),
        log_with=None if config.tracker == "none" else config.tracker,
        project_dir=config.out or "runs",
    )
    if config.batch_size % accelerator.num_processes:
        raise ValueError(
            f"batch_size is {config.batch_size}; it must be a multiple of the "
            f"{accelerator.num_processes} processes"
        )
    return accelerator


def make_fit(
    config: NarTokenizerConfig | NarTrainConfig | NarConvertConfig,
    folder: Path,
    accelerator: Accelerator,
    model: nn.Module,
    parameter_groups: list[dict],
    count: int,
    contents: dict[str, str],
) -> Fit:
    """Prepare a model for training on `count` pictures; the optimizer is AdamW (0.9, 0.95)."""
    average = None
    if config.ema_decay:
        average = AveragedModel(
            model,
            device=accelerator.device,
            avg_fn=lambda old, new, n: old.lerp(
                new, 1 - min(config.ema_decay, float(1 + n) / float(10 + n))
            ),
        )
    groups = [{"weight_decay": 0.0, **group} for group in parameter_groups]
    optimizer = torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.95))
    wrapped, optimizer = accelerator.prepare(model, optimizer)
    return Fit(config, folder, accelerator, wrapped, optimizer, average, count, contents)


def open_folder(
    config: NarTokenizerConfig | NarTrainConfig | NarConvertConfig,
    accelerator: Accelerator,
    command: str,
) -> Path:
    """The run's folder, the same in every process."""
    folder = [""]
    if accelerator.is_main_process:
        folder = [
            str(open_run(config.out, config, config.overwrite, config.resume, command=command))
        ]
    return Path(broadcast_object_list(folder)[0])


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
    """The learning rate of an update, as a share of its peak."""
    done = update / steps
    rise = min(1.0, (update + 1) / warmup) if warmup else 1.0
    if schedule == "constant":
        return rise
    if schedule == "paper-steps":
        return rise * 0.2 ** sum(done >= share for share in (1 / 2, 2 / 3, 5 / 6))
    return rise * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done)))


def run_fit(
    fit: Fit,
    loss_fn: LossFn,
    *,
    micro_batch_size: int | None = None,
    schedule: str = "cosine",
    warmup: int = 20,
    max_grad_norm: float = 1.0,
    on_update: Callable[[Fit], None] | None = None,
) -> None:
    """Train until the last update, the time limit or a signal; whatever was reached is saved.

    Raises:
        Diverged: in any process the loss or the gradient is not a finite number; the state before
            that update is saved.
        KeyboardInterrupt: SIGINT or SIGTERM, in any process, after saving.
    """
    c, accelerator = fit.config, fit.accelerator
    main = accelerator.is_main_process
    if main:
        drop_metrics_after(fit.folder, fit.done)
    if c.tracker != "none":
        accelerator.init_trackers("align-nar")

    def tell(record: dict[str, Any]) -> bool:
        log_metrics(fit.folder, step=fit.done, **record)
        accelerator.log(record, step=fit.done)
        if on_update is not None:
            on_update(fit)
        return False

    try:
        with stop_signals() as stop_asked:

            def step(update: int) -> dict[str, Any]:
                rate = c.learning_rate * lr_factor(schedule, fit.stepped, c.steps, warmup)
                for group in fit.optimizer.param_groups:
                    group["lr"] = rate * group.get("lr_scale", 1.0)
                made = _update(fit, loss_fn, micro_batch_size, max_grad_norm, stop_asked)
                return {"lr": rate, **made}

            run_updates(fit, step, save=lambda: save_checkpoint(fit), tell=tell)
        if main:
            save_checkpoint(fit)
        accelerator.wait_for_everyone()
    finally:
        end_training(accelerator)


def _update(
    fit: Fit,
    loss_fn: LossFn,
    micro_batch_size: int | None,
    max_grad_norm: float,
    stop_asked: Callable[[], bool],
) -> dict[str, float]:
    """One optimizer step over this process's share of the batch; what to log."""
    c, accelerator = fit.config, fit.accelerator
    started = time.perf_counter()
    batch = batch_indices(c.seed, fit.done, c.batch_size, fit.count)
    share = batch[accelerator.process_index :: accelerator.num_processes]
    size = min(micro_batch_size or len(share), len(share))
    parts = [share[start : start + size] for start in range(0, len(share), size)]
    seed = (c.seed * 1_000_003 + fit.done) * 64 + accelerator.process_index & 0x7FFFFFFF
    fit.model.train()
    fit.optimizer.zero_grad()
    total, logged = 0.0, {}
    with seeded(seed), _buffers_kept(fit.plain):
        for number, part in enumerate(parts):
            with accelerator.accumulate(fit.model) if number + 1 == len(parts) else _no_sync(fit):
                loss, logged = loss_fn(fit.model, fit.done, part)
                value, weight = float(loss.detach()), len(part) / len(share)
                fault = None if math.isfinite(value) else Diverged(f"the loss is {value}")
                agree(accelerator, fault, stop_asked())
                accelerator.backward(loss * weight)
                total += value * weight
    norm, stepped = step_optimizer(fit, list(fit.model.parameters()), max_grad_norm)
    if stepped:
        fit.stepped += 1
        if fit.average is not None:
            fit.average.update_parameters(fit.plain)
    seconds = time.perf_counter() - started
    return {"loss": total, "grad_norm": norm, **logged, "seconds": seconds}


def _no_sync(fit: Fit) -> Any:
    return fit.accelerator.no_sync(fit.model)


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
