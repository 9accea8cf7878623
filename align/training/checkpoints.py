"""Checkpoints of a run: written whole or not at all, the last few kept, resumed bit for bit.

`checkpoints/step-N/` holds the weights as safetensors (of a LoRA run `lora.safetensors`, with
their moving average), `optimizer.pt` (read with `weights_only`) and `checkpoint.json`: the step,
what was trained, everything small, and the other files' checksums. Random numbers need no saving:
each update's follow from the run's seed and its number.
"""

import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from align.config.checks import to_dict, without_removed
from align.language.prompts import PromptSet
from align.runs.files import clear_disk_errors, write_atomic
from align.runs.folder import read_metrics, record_resume
from align.training.optimizer import restore_optimizer, restore_schedule
from align.training.runs import Run

log = logging.getLogger(__name__)
# Of a LoRA run: with another value it would be another run, and is refused.
IDENTITY = ("model", "reward", "lora_rank", "lora_alpha", "lora_targets", "optimizer", "method")
# Of any run: what changes no result, rounding apart. Every other field may change in a resumed run,
# which is then no longer what the uninterrupted one had been.
HARMLESS = (
    "out", "overwrite", "resume", "device", "threads", "tracker", "push_to_hub", "max_minutes",
    "checkpoint_every", "keep_checkpoints", "sample_every", "micro_batch_size", "checkpointing",
    "block_checkpointing", "cache_embeddings", "offload", "memory", "shard", "attention", "compile",
    "term_gradients", "preset", "self_check", "dry_run",
    "judge_prompts",  # the judge compares what they hold
)  # fmt: skip
JUDGED_BY = ("judge", "judge_images")


def write_checkpoint(
    run: Path,
    config: Any,
    step: int,
    weights: Mapping[str, Mapping[str, Tensor]],
    optimizer: Any,
    state: Mapping[str, Any],
    *,
    identity: Sequence[str] = IDENTITY,
) -> Path:
    """Write `checkpoints/step-N` of a run's folder, and keep the newest `config.keep_checkpoints`.

    `weights` are tensors by the name of their file, `state` is anything small that JSON can hold;
    the settings named by `identity` are those that a resumed run must share.
    Raises OSError, leaving the earlier checkpoints, where the disk is full.
    """
    folder = run / "checkpoints" / f"step-{step}"
    part = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    with clear_disk_errors(folder):
        try:
            part.mkdir(parents=True)
            for name, tensors in weights.items():
                save_file(dict(tensors), part / name)
            torch.save(optimizer.state_dict(), part / "optimizer.pt")
            files = (*weights, "optimizer.pt")
            described = {
                "step": step,
                "identity": _settings(config, identity),
                "settings": _settings(config, _course(config, identity)),
                **state,
                "sha256": {name: _sha256(part / name) for name in files},
            }
            text = json.dumps(described, indent=2) + "\n"
            (part / "checkpoint.json").write_text(text, encoding="utf-8")
            for name in (*files, "checkpoint.json"):
                _sync(part / name)
            _sync(part)
            shutil.rmtree(folder, ignore_errors=True)  # a torn one, which was passed over
            part.rename(folder)
            _sync(folder.parent)
        finally:
            shutil.rmtree(part, ignore_errors=True)
    for old in list_checkpoints(run)[config.keep_checkpoints :]:
        shutil.rmtree(old)
    return folder


def find_checkpoint(
    run: Path, config: Any, *, identity: Sequence[str] = IDENTITY
) -> tuple[Path, dict[str, Any]] | None:
    """The newest whole checkpoint of a run's folder and its state; None where there is none yet.

    A torn one is passed over with a warning. Raises ValueError where the checkpoint is of another
    run (of another model, reward, LoRA), or all are torn.
    """
    folders = list_checkpoints(run)
    for folder in folders:
        state = read_checkpoint(folder)
        if state is not None:
            check_identity(config, state, run, identity=identity)
            return folder, state
    if folders:
        raise ValueError(
            f"no checkpoint of {run} is whole; start over with another --out or with --overwrite"
        )
    return None


def drop_checkpoints_after(run: Path, step: int) -> None:
    """Remove the torn checkpoints that were passed over."""
    for folder in list_checkpoints(run):
        if int(folder.name.removeprefix("step-")) > step:
            shutil.rmtree(folder)


def save_checkpoint(session: Run) -> None:
    """Write the state of a LoRA run; call it on the main process alone."""
    if session.saved == session.done:
        return
    tensors = {f"lora.{i}": p.detach().contiguous() for i, p in enumerate(session.parameters)}
    ema = session.ema.state_dict() if session.ema else None
    if ema:
        shadows = ema.pop("shadow_params")
        tensors |= {f"ema.{i}": p.contiguous() for i, p in enumerate(shadows)}
    scaler = session.accelerator.scaler
    state = {
        "contents": {"prompts": digest_of(session.prompts)},
        "schedule": {"last_epoch": session.schedule.last_epoch},
        "ema": ema,
        "scaler": scaler.state_dict() if scaler else None,
        "reward_moments": session.scale.moments if session.scale else None,
        "course": session.course,
    }
    weights = {"lora.safetensors": tensors}
    write_checkpoint(
        session.folder, session.config, session.done, weights, session.optimizer, state
    )
    session.saved = session.done


def resume(session: Run) -> bool:
    """Load the newest whole checkpoint of a LoRA run's folder; False where there is none.

    Raises ValueError as `find_checkpoint` does.
    """
    found = find_checkpoint(session.folder, session.config)
    if found is not None:
        _load(session, *found)
    if session.accelerator.is_main_process:
        contents = {"prompts": digest_of(session.prompts)}
        go_on(session, found[1] if found else None, contents)
    return found is not None


def go_on(
    run: Any,
    state: dict[str, Any] | None,
    contents: Mapping[str, str],
    *,
    identity: Sequence[str] = IDENTITY,
) -> None:
    """Say, in log and run.json, how a run goes on from a checkpoint (None: from its start), and
    remove the torn ones that were passed over; on the main process alone."""
    if state is not None:
        drop_checkpoints_after(run.folder, run.done)
        warn_about_changes(run.config, state, contents, identity=identity)
    record_resume(run.folder, run.config, run.done)


def digest_of(prompts: PromptSet) -> str:
    """A hash of prompts and their metadata."""
    text = json.dumps([prompts.prompts, prompts.metadata], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


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
        if (folder / "state.json").is_file():
            return _former_state(folder)
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


def _former_state(folder: Path) -> dict[str, Any]:
    """Of a NAR run of d6ba49c or earlier: it had state.json and no checksums, the settings lie in
    run.json, and what its files held is not known."""
    state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
    run = json.loads((folder.parents[1] / "run.json").read_text(encoding="utf-8"))
    step = {"stepped": state["step"], "schedule": {"last_epoch": state["step"]}}
    said = {"identity": run["config"], "settings": run["config"], "contents": {}}
    return {"ema": None, "reward_moments": None, "course": {}, **step, **said, **state}


def check_identity(
    config: Any, state: dict[str, Any], run: Path, *, identity: Sequence[str] = IDENTITY
) -> None:
    """Raise ValueError naming what differs between a checkpoint and this run."""
    without_removed(type(config), state["settings"])
    for name, value in _settings(config, identity).items():
        if state["identity"].get(name) != value:
            raise ValueError(
                f"{run} was trained with {name} {state['identity'].get(name)!r}, not {value!r}; "
                f"resume it with that, or give another --out"
            )
    if getattr(config, "judge", None) is not None:
        for name, value in _settings(config, JUDGED_BY).items():
            if state["settings"].get(name) != value:
                raise ValueError(
                    f"{run} was judged with {name} {state['settings'].get(name)!r}, not {value!r}; "
                    "a judge has to see a run from its start"
                )


def warn_about_changes(
    config: Any,
    state: dict[str, Any],
    contents: Mapping[str, str],
    *,
    identity: Sequence[str] = IDENTITY,
) -> None:
    """Say which settings a resumed run has otherwise than its checkpoint, and which of its files
    (`contents`, hashes by the setting that names them) hold something else."""
    now, then = _settings(config, _course(config, identity)), state["settings"]
    held = state.get("contents", {})
    names = {name for name in now if name in then and then[name] != now[name]} - held.keys()
    if {now.get("lr_schedule"), then.get("lr_schedule")} == {"constant"}:
        names.discard("steps")  # a longer run, the same as far as this one went
    said = [f"{name} {then[name]!r}, now {now[name]!r}" for name in now if name in names]
    said += [f"{n} holds other things" for n in contents if held.get(n, contents[n]) != contents[n]]
    if said:
        log.warning(
            "warning: resumed with other settings (%s): the run is not what it would have been",
            ", ".join(said),
        )


def drop_metrics_after(folder: Path, step: int) -> None:
    """Take the records of updates that will be done again out of metrics.jsonl."""
    records = read_metrics(folder)
    if any(record["step"] > step for record in records):
        kept = [json.dumps(record) + "\n" for record in records if record["step"] <= step]
        write_atomic(folder / "metrics.jsonl", "".join(kept))


def _settings(config: Any, names: Sequence[str]) -> dict[str, Any]:
    """The settings of these names that a config has, as JSON gives them back."""
    values = {name: value for name, value in to_dict(config).items() if name in names}
    return json.loads(json.dumps(values))


def _course(config: Any, identity: Sequence[str]) -> list[str]:
    """The settings that results depend on, less those that a resumed run must share."""
    return [name for name in to_dict(config) if name not in (*HARMLESS, *identity)]


def _load(session: Run, folder: Path, state: dict[str, Any]) -> None:
    tensors = load_file(folder / "lora.safetensors")
    for i, parameter in enumerate(session.parameters):
        parameter.data.copy_(tensors[f"lora.{i}"])
    saved = torch.load(folder / "optimizer.pt", map_location="cpu", weights_only=True)
    restore_optimizer(session.optimizer, saved)
    restore_schedule(session.schedule, session.optimizer, state["schedule"]["last_epoch"])
    if session.ema is not None:
        shadows = [tensors.get(f"ema.{i}", p.data) for i, p in enumerate(session.parameters)]
        own = {"decay": session.config.ema_decay, "shadow_params": shadows}
        session.ema.load_state_dict((state["ema"] or {}) | own)
        session.ema.to(session.parameters[0].device)
    if session.accelerator.scaler is not None and state["scaler"] is not None:
        session.accelerator.scaler.load_state_dict(state["scaler"])
    if session.scale is not None and state["reward_moments"] is not None:
        moments = state["reward_moments"].items()
        session.scale.moments = {name: (mean, square) for name, (mean, square) in moments}
    session.done = session.saved = state["step"]
    session.course = state["course"]


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
