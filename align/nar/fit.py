"""The training loop of the tokenizer and the transformer: updates, average, checkpoints, resume.

What update s sees (its pictures, its dropout) follows from the run's seed and s alone, so a run
that was killed and resumed ends with the weights of one that was not, bit for bit.
"""

import json
import logging
import math
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import broadcast_object_list, set_seed
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from tqdm import tqdm

from align.files import clear_disk_errors
from align.models import torch_device
from align.nar.config import NarConvertConfig, NarTokenizerConfig, NarTrainConfig
from align.precision import fast_bfloat16
from align.processes import end_training
from align.run import log_metrics, open_run
from align.train import stop_signals
from align.training.checkpoints import drop_metrics_after, list_checkpoints
from align.training.update import Diverged, Interrupted

log = logging.getLogger(__name__)
# (model, update, indices of pictures) -> (mean loss, numbers to log)
LossFn = Callable[[nn.Module, int, list[int]], tuple[Tensor, dict[str, float]]]


@dataclass
class Fit:
    """The state of a run."""

    config: NarTokenizerConfig | NarTrainConfig
    folder: Path
    accelerator: Accelerator
    model: nn.Module  # as the accelerator wrapped it
    optimizer: Any
    average: AveragedModel | None
    count: int  # pictures
    done: int = 0

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
    # a run before in this process may have had another precision or device
    AcceleratorState._reset_state(reset_partial_state=not torch.distributed.is_initialized())
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    device = torch_device(config.device)
    accelerator = Accelerator(
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
    config: NarTokenizerConfig | NarTrainConfig,
    folder: Path,
    accelerator: Accelerator,
    model: nn.Module,
    parameter_groups: list[dict],
    count: int,
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
    return Fit(config, folder, accelerator, wrapped, optimizer, average, count)


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
        Diverged: the loss is not a finite number; the state before that update is saved.
        KeyboardInterrupt: SIGINT or SIGTERM, after saving.
    """
    c, accelerator, started = fit.config, fit.accelerator, time.monotonic()
    main = accelerator.is_main_process
    if main:
        drop_metrics_after(fit.folder, fit.done)
    if c.tracker != "none":
        accelerator.init_trackers("align-nar")
    bar = tqdm(total=c.steps, initial=fit.done, unit="step", disable=not main)
    with stop_signals() as stop_asked:
        try:
            while fit.done < c.steps:
                factor = lr_factor(schedule, fit.done, c.steps, warmup)
                for group in fit.optimizer.param_groups:
                    group["lr"] = c.learning_rate * factor * group.get("lr_scale", 1.0)
                record = _update(fit, loss_fn, micro_batch_size, max_grad_norm, stop_asked)
                fit.done += 1
                bar.set_postfix(loss=f"{record['loss']:.4g}", refresh=False)
                bar.update()
                if main:
                    log_metrics(fit.folder, step=fit.done, lr=c.learning_rate * factor, **record)
                accelerator.log(record, step=fit.done)
                if fit.done % c.checkpoint_every == 0 and main:
                    save_checkpoint(fit)
                if on_update is not None and main:
                    on_update(fit)
                late = time.monotonic() - started > 60 * (c.max_minutes or math.inf)
                if broadcast_object_list([late])[0]:
                    break
        finally:
            bar.close()
            if main:
                save_checkpoint(fit)
            accelerator.wait_for_everyone()
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
    if stop_asked():
        raise Interrupted
    set_seed((c.seed * 1_000_003 + fit.done) * 64 + accelerator.process_index & 0x7FFFFFFF)
    batch = batch_indices(c.seed, fit.done, c.batch_size, fit.count)
    share = batch[accelerator.process_index :: accelerator.num_processes]
    size = min(micro_batch_size or len(share), len(share))
    parts = [share[start : start + size] for start in range(0, len(share), size)]
    fit.model.train()
    fit.optimizer.zero_grad()
    total, logged = 0.0, {}
    for number, part in enumerate(parts):
        with accelerator.accumulate(fit.model) if number + 1 == len(parts) else _no_sync(fit):
            loss, logged = loss_fn(fit.model, fit.done, part)
            weight = len(part) / len(share)
            accelerator.backward(loss * weight)
            total += float(loss.detach()) * weight
    if not math.isfinite(total):
        raise Diverged(f"stopped at step {fit.done + 1}: the loss is {total}")
    norm = float(accelerator.clip_grad_norm_(fit.model.parameters(), max_grad_norm) or 0)
    fit.optimizer.step()
    if fit.average is not None:
        fit.average.update_parameters(fit.plain)
    seconds = time.perf_counter() - started
    return {"loss": total, "grad_norm": norm, **logged, "seconds": seconds}


def _no_sync(fit: Fit) -> Any:
    return fit.accelerator.no_sync(fit.model)


# --- checkpoints -----------------------------------------------------------------------------


def save_checkpoint(fit: Fit) -> Path:
    """Write `checkpoints/step-N` whole or not at all, and keep the newest few."""
    target = fit.folder / "checkpoints" / f"step-{fit.done}"
    if target.exists():
        return target
    part = target.with_name(f".{target.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    with clear_disk_errors(target):
        try:
            part.mkdir(parents=True)
            save_file(_tensors(fit.plain), part / "model.safetensors")
            if fit.average is not None:
                save_file(_tensors(fit.average), part / "average.safetensors")
            torch.save(fit.optimizer.state_dict(), part / "optimizer.pt")
            scaler = fit.accelerator.scaler
            state = {"step": fit.done, "scaler": scaler.state_dict() if scaler else None}
            (part / "state.json").write_text(json.dumps(state))
            part.rename(target)
        finally:
            shutil.rmtree(part, ignore_errors=True)
    for old in list_checkpoints(fit.folder)[fit.config.keep_checkpoints :]:
        shutil.rmtree(old)
    return target


def resume(fit: Fit) -> bool:
    """Load the newest checkpoint of the run's folder; False where there is none yet.

    Raises ValueError where it is of a model of another size.
    """
    found = list_checkpoints(fit.folder)
    if not found:
        return False
    folder, device = found[0], str(fit.accelerator.device)
    try:
        fit.plain.load_state_dict(load_file(folder / "model.safetensors", device=device))
        if fit.average is not None:
            fit.average.load_state_dict(load_file(folder / "average.safetensors", device=device))
    except (RuntimeError, FileNotFoundError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ValueError(f"{folder} is of another model: {reason}") from error
    optimizer = torch.load(folder / "optimizer.pt", map_location="cpu", weights_only=True)
    fit.optimizer.load_state_dict(optimizer)
    state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
    if fit.accelerator.scaler is not None and state["scaler"] is not None:
        fit.accelerator.scaler.load_state_dict(state["scaler"])
    fit.done = state["step"]
    log.info("resumed at step %d of %d", fit.done, fit.config.steps)
    return True


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    return {key: value.detach().clone().contiguous() for key, value in module.state_dict().items()}
