"""Checkpoints of a run: written whole or not at all, the last few kept, resumed bit for bit.

`checkpoints/step-N/` holds `lora.safetensors` (the trained weights, and their moving average),
`optimizer.pt` (read with `weights_only`) and `checkpoint.json`: the step, what was trained,
everything small, and the other files' checksums. Random numbers need no saving: each update's
follow from the run's seed and its number.
"""

import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from align.checks import to_dict
from align.files import clear_disk_errors, write_atomic
from align.run import read_metrics
from align.training.runs import Run

log = logging.getLogger(__name__)
IDENTITY = ("model", "reward", "lora_rank", "lora_alpha", "lora_targets", "optimizer", "method")
# What may change in a resumed run, which is then no longer what the uninterrupted one had been.
COURSE = (
    "seed", "prompts", "batch_size", "grad_window", "num_inference_steps", "guidance_scale", "eta",
    "learning_rate", "lr_schedule", "warmup_steps", "weight_decay", "max_grad_norm",
    "max_step_grad_norm", "kl_weight", "ema_decay", "group_size", "pair_timesteps", "beta",
    "normalize_rewards",
)  # fmt: skip
JUDGED_BY = ("judge", "judge_prompts", "judge_images")
FILES = ("lora.safetensors", "optimizer.pt")


def save_checkpoint(session: Run) -> Path:
    """Write the session's state as `checkpoints/step-N`; call it on the main process alone.

    Raises OSError, leaving the earlier checkpoints, where the disk is full.
    """
    folder = session.folder / "checkpoints" / f"step-{session.done}"
    part = folder.with_name(f".{folder.name}.part")
    if session.saved == session.done:
        return folder
    shutil.rmtree(part, ignore_errors=True)
    with clear_disk_errors(folder):
        try:
            part.mkdir(parents=True)
            _write(session, part)
            shutil.rmtree(folder, ignore_errors=True)  # a torn one, which was passed over
            part.rename(folder)
            _sync(folder.parent)
        finally:
            shutil.rmtree(part, ignore_errors=True)
    for old in list_checkpoints(session.folder)[session.config.keep_checkpoints :]:
        shutil.rmtree(old)
    session.saved = session.done
    return folder


def _write(session: Run, part: Path) -> None:
    tensors = {f"lora.{i}": p.detach().contiguous() for i, p in enumerate(session.parameters)}
    ema = session.ema.state_dict() if session.ema else None
    if ema:
        shadows = ema.pop("shadow_params")
        tensors |= {f"ema.{i}": p.contiguous() for i, p in enumerate(shadows)}
    save_file(tensors, part / "lora.safetensors")
    torch.save(session.optimizer.state_dict(), part / "optimizer.pt")
    scaler = session.accelerator.scaler
    state = {
        "step": session.done,
        "identity": _identity(session.config),
        "settings": _settings(session.config, (*COURSE, *JUDGED_BY)),
        "schedule": {k: v for k, v in session.schedule.state_dict().items() if k != "lr_lambdas"},
        "ema": ema,
        "scaler": scaler.state_dict() if scaler else None,
        "reward_moments": session.scale.moments if session.scale else None,
        "course": session.course,
        "sha256": {name: _sha256(part / name) for name in FILES},
    }
    (part / "checkpoint.json").write_text(json.dumps(state, indent=2) + "\n", encoding="utf-8")
    for name in (*FILES, "checkpoint.json"):
        _sync(part / name)
    _sync(part)


def resume(session: Run) -> bool:
    """Load the newest whole checkpoint of the session's folder; False where there is none.

    A torn one is passed over with a warning, and removed once an older one is loaded. Raises
    ValueError where the checkpoint is of another model, reward or LoRA, or all are torn.
    """
    folders = list_checkpoints(session.folder)
    for number, folder in enumerate(folders):
        state = read_checkpoint(folder)
        if state is not None:
            check_identity(session.config, state, session.folder)
            _load(session, folder, state)
            if session.accelerator.is_main_process:
                for torn in folders[:number]:
                    shutil.rmtree(torn)
            return True
    if folders:
        raise ValueError(
            f"no checkpoint of {session.folder} is whole; start over with another --out or with "
            "--overwrite"
        )
    return False


def refuse_other_run(config: Any) -> None:
    """Raise ValueError, before anything is loaded, where `resume` names another run's folder."""
    if config.resume is None:
        return
    for folder in list_checkpoints(Path(config.resume)):
        try:
            state = json.loads((folder / "checkpoint.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        check_identity(config, state, Path(config.resume))
        return


def list_checkpoints(run: Path) -> list[Path]:
    """The checkpoint folders of a run, newest first."""
    found = [p for p in (run / "checkpoints").glob("step-*") if re.fullmatch(r"step-\d+", p.name)]
    return sorted(found, key=lambda path: int(path.name.removeprefix("step-")), reverse=True)


def read_checkpoint(folder: Path) -> dict[str, Any] | None:
    """What checkpoint.json says; None, with a warning, where a file is missing or torn."""
    try:
        state = json.loads((folder / "checkpoint.json").read_text(encoding="utf-8"))
        damaged = [n for n, digest in state["sha256"].items() if _sha256(folder / n) != digest]
    except (OSError, ValueError, KeyError) as error:
        log.warning("warning: %s is damaged (%s); looking for an older one", folder, error)
        return None
    if damaged:
        names = ", ".join(damaged)
        log.warning("warning: %s is damaged (%s); looking for an older one", folder, names)
        return None
    return state


def check_identity(config: Any, state: dict[str, Any], run: Path) -> None:
    """Raise ValueError naming what differs between a checkpoint and this run."""
    for name, value in _identity(config).items():
        if state["identity"].get(name) != value:
            raise ValueError(
                f"{run} was trained with {name} {state['identity'].get(name)!r}, not {value!r}; "
                f"resume it with that, or give another --out"
            )
    if config.judge is not None:
        for name, value in _settings(config, JUDGED_BY).items():
            if state["settings"].get(name) != value:
                raise ValueError(
                    f"{run} was judged with {name} {state['settings'].get(name)!r}, not {value!r}; "
                    "a judge has to see a run from its start"
                )


def warn_about_changes(config: Any, state: dict[str, Any]) -> None:
    """Say which settings a resumed run has otherwise than its checkpoint."""
    now, then = _settings(config, COURSE), state["settings"]
    changed = [name for name in now if then.get(name) != now[name]]
    if changed:
        log.warning(
            "warning: resumed with other settings (%s): the run is not what it would have been%s",
            ", ".join(f"{name} {then.get(name)!r}, now {now[name]!r}" for name in changed),
            ", and the optimizer keeps its learning rate" if "learning_rate" in changed else "",
        )


def drop_metrics_after(folder: Path, step: int) -> None:
    """Take the records of updates that will be done again out of metrics.jsonl."""
    records = read_metrics(folder)
    if any(record["step"] > step for record in records):
        kept = [json.dumps(record) + "\n" for record in records if record["step"] <= step]
        write_atomic(folder / "metrics.jsonl", "".join(kept))


def _identity(config: Any) -> dict[str, Any]:
    values = {name: value for name, value in to_dict(config).items() if name in IDENTITY}
    values["lora_targets"] = config.lora_targets and list(config.lora_targets)
    return values


def _settings(config: Any, names: Sequence[str]) -> dict[str, Any]:
    return {name: value for name, value in to_dict(config).items() if name in names}


def _load(session: Run, folder: Path, state: dict[str, Any]) -> None:
    tensors = load_file(folder / "lora.safetensors")
    for i, parameter in enumerate(session.parameters):
        parameter.data.copy_(tensors[f"lora.{i}"])
    optimizer = torch.load(folder / "optimizer.pt", map_location="cpu", weights_only=True)
    session.optimizer.load_state_dict(optimizer)
    session.schedule.load_state_dict(state["schedule"] | {"lr_lambdas": [None]})
    if session.ema is not None and state["ema"] is not None:
        shadows = [tensors[f"ema.{i}"] for i in range(len(session.parameters))]
        session.ema.load_state_dict(state["ema"] | {"shadow_params": shadows})
        session.ema.to(session.parameters[0].device)
    if session.accelerator.scaler is not None and state["scaler"] is not None:
        session.accelerator.scaler.load_state_dict(state["scaler"])
    if session.scale is not None and state["reward_moments"] is not None:
        moments = state["reward_moments"].items()
        session.scale.moments = {name: (mean, square) for name, (mean, square) in moments}
    session.done = session.saved = state["step"]
    session.course = state["course"]
    if session.accelerator.is_main_process:
        warn_about_changes(session.config, state)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    """Wait until a file, or a folder's list of names, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
