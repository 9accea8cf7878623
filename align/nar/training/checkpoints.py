"""Checkpoints of `align nar tokenizer`, `train` and `convert`, in the form of those of a LoRA run.

Beside `optimizer.pt` and `checkpoint.json` they hold `model.safetensors`, and where there is a
moving average `average.safetensors`. `fit` is an `align.nar.training.fit.Fit`.
"""

import logging
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from align.training.checkpoints import find_checkpoint, go_on, write_checkpoint
from align.training.optimizer import restore_optimizer

log = logging.getLogger(__name__)
# What the network is; the fields of both commands.
IDENTITY = (
    "image_size", "patch", "context", "quantizer", "levels", "codebook_size", "width", "condition",
    "text_encoder", "text_tokens", "num_layers", "num_heads", "branch_depth", "fusion", "decoding",
    "cond_rope",
)  # fmt: skip


def save_checkpoint(fit: Any) -> None:
    """Write `checkpoints/step-N` whole or not at all, and keep the newest few."""
    if fit.saved == fit.done:
        return
    weights = {"model.safetensors": _tensors(fit.plain)}
    if fit.average is not None:
        weights["average.safetensors"] = _tensors(fit.average)
    scaler = fit.accelerator.scaler
    state = {
        "stepped": fit.stepped,
        "scaler": scaler.state_dict() if scaler else None,
        "contents": fit.contents,
    }
    write_checkpoint(
        fit.folder, fit.config, fit.done, weights, fit.optimizer, state, identity=IDENTITY
    )
    fit.saved = fit.done


def resume(fit: Any) -> bool:
    """Load the newest whole checkpoint of the run's folder; False where there is none yet.

    Raises ValueError where it is of another network or image tokenizer, or all are torn.
    """
    found = find_checkpoint(fit.folder, fit.config, identity=IDENTITY)
    if found is not None:
        tokens = fit.contents.get("tokenizer")
        if found[1]["contents"].get("tokenizer", tokens) != tokens:
            raise ValueError(
                f"{fit.folder} was trained on the tokens of another image tokenizer; resume it "
                "with that, or give another --out"
            )
        _load(fit, *found)
        log.info("resumed at step %d of %d", fit.done, fit.config.steps)
    if fit.accelerator.is_main_process:
        go_on(fit, found[1] if found else None, fit.contents, identity=IDENTITY)
    return found is not None


def _load(fit: Any, folder: Path, state: dict[str, Any]) -> None:
    device = str(fit.accelerator.device)
    try:
        fit.plain.load_state_dict(load_file(folder / "model.safetensors", device=device))
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise ValueError(f"{folder} is of another model: {reason}") from error
    if fit.average is not None and (folder / "average.safetensors").is_file():
        fit.average.load_state_dict(load_file(folder / "average.safetensors", device=device))
    elif fit.average is not None:  # there was none so far: it begins here
        fit.average.module.load_state_dict(fit.plain.state_dict())
    saved = torch.load(folder / "optimizer.pt", map_location="cpu", weights_only=True)
    restore_optimizer(fit.optimizer, saved)
    if fit.accelerator.scaler is not None and state["scaler"] is not None:
        fit.accelerator.scaler.load_state_dict(state["scaler"])
    fit.done = fit.saved = state["step"]
    fit.stepped = state["stepped"]


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    return {key: value.detach().clone().contiguous() for key, value in module.state_dict().items()}
