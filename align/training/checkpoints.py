"""Checkpoints of a run: written whole or not at all, the last few kept, resumed bit for bit.

`checkpoints/step-N/` holds the weights as safetensors (of a LoRA's run `lora.safetensors`, with
their moving average; else `model.safetensors`, and `average.safetensors` where there is one),
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
from torch import Tensor

from align.config.checks import to_dict, without_removed
from align.language.prompts import PromptSet
from align.runs.files import clear_disk_errors, write_atomic
from align.runs.folder import read_metrics, record_resume
from align.training.optimizer import restore_optimizer, restore_schedule
from align.training.runs import Run

log = logging.getLogger(__name__)
# With another value it would be another run, and is refused: of a LoRA's run, and of a network's.
IDENTITY = ("model", "reward", "lora_rank", "lora_alpha", "lora_targets", "optimizer", "method")
NETWORK = (
    "image_size", "patch", "context", "quantizer", "levels", "codebook_size", "width", "condition",
    "text_encoder", "text_tokens", "num_layers", "num_heads", "branch_depth", "fusion", "decoding",
    "cond_rope",
)  # fmt: skip
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


def save_checkpoint(run: Run) -> None:
    """Write `checkpoints/step-N` of a run's folder, and keep the newest `config.keep_checkpoints`;
    call it on the main process alone.

    Raises OSError, leaving the earlier checkpoints, where the disk is full.
    """
    if run.saved == run.done:
        return
    folder = run.folder / "checkpoints" / f"step-{run.done}"
    part = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    with clear_disk_errors(folder):
        try:
            part.mkdir(parents=True)
            weights = _weights(run)
            for name, tensors in weights.items():
                save_file(tensors, part / name)
            torch.save(run.optimizer.state_dict(), part / "optimizer.pt")
            files = (*weights, "optimizer.pt")
            described = _state(run) | {"sha256": {name: _sha256(part / name) for name in files}}
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
    for old in list_checkpoints(run.folder)[run.config.keep_checkpoints :]:
        shutil.rmtree(old)
    run.saved = run.done


def resume(run: Run) -> bool:
    """Load the newest whole checkpoint of the run's folder; False where there is none yet.

    Torn ones are passed over with a warning, and removed. Raises ValueError where the checkpoint
    is of another run (of another model, reward, LoRA, image tokenizer), or all are torn.
    """
    folders = list_checkpoints(run.folder)
    whole = ((folder, read_checkpoint(folder)) for folder in folders)
    found, state = next(((f, state) for f, state in whole if state is not None), (None, None))
    if folders and found is None:
        raise ValueError(
            f"no checkpoint of {run.folder} is whole; start over with another --out or with "
            "--overwrite"
        )
    if found is not None and state is not None:
        check_identity(run.config, state, run.folder)
        _load(run, found, state)
        log.info("resumed at step %d of %d", run.done, run.config.steps)
    if run.accelerator.is_main_process:
        if found is not None and state is not None:
            for torn in folders[: folders.index(found)]:
                shutil.rmtree(torn)
            warn_about_changes(run, state)
        record_resume(run.folder, run.config, run.done)
    return found is not None


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


def check_identity(config: Any, state: dict[str, Any], run: Path) -> None:
    """Raise ValueError naming what differs between a checkpoint and this run."""
    without_removed(type(config), state["settings"])
    for name, value in _settings(config, _identity(config)).items():
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


def warn_about_changes(run: Run, state: dict[str, Any]) -> None:
    """Say which settings a resumed run has otherwise than its checkpoint, and which of its
    `contents` are others."""
    now, then = _settings(run.config, _course(run.config)), state["settings"]
    held = state.get("contents", {})
    names = {name for name in now if name in then and then[name] != now[name]} - held.keys()
    if {now.get("lr_schedule"), then.get("lr_schedule")} == {"constant"}:
        names.discard("steps")  # a longer run, the same as far as this one went
    said = [f"{name} {then[name]!r}, now {now[name]!r}" for name in now if name in names]
    said += [
        f"{name} holds other things"
        for name, digest in run.contents.items()
        if held.get(name, digest) != digest
    ]
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


def _identity(config: Any) -> tuple[str, ...]:
    return IDENTITY if hasattr(config, "lora_rank") else NETWORK


def _course(config: Any) -> list[str]:
    """The settings that results depend on, less those that a resumed run must share."""
    return [name for name in to_dict(config) if name not in (*HARMLESS, *_identity(config))]


def _weights(run: Run) -> dict[str, dict[str, Tensor]]:
    """Tensors by the name of their file."""
    averages = {}
    if run.ema is not None:
        averages = dict(zip(_averaged(run), run.ema.shadow_params, strict=True))
        averages = {name: tensor.contiguous() for name, tensor in averages.items()}
    if run.pipe is not None:
        lora = {f"lora.{i}": p.detach().contiguous() for i, p in enumerate(run.parameters)}
        kept = {f"kept.{i}": tensor.contiguous() for i, tensor in enumerate(run.kept)}
        return {"lora.safetensors": lora | averages | kept}
    weights = {k: v.detach().clone().contiguous() for k, v in run.plain.state_dict().items()}
    return {"model.safetensors": weights} | ({"average.safetensors": averages} if averages else {})


def _averaged(run: Run) -> list[str]:
    """What the moving averages of a run's parameters are called."""
    if run.pipe is not None:
        return [f"ema.{i}" for i in range(len(run.parameters))]
    return [f"module.{name}" for name, _ in run.plain.named_parameters()]


def _state(run: Run) -> dict[str, Any]:
    """All that is small."""
    scaler = run.accelerator.scaler
    ema = run.ema.state_dict() if run.ema else {}
    return {
        "step": run.done,
        "identity": _settings(run.config, _identity(run.config)),
        "settings": _settings(run.config, _course(run.config)),
        "contents": run.contents,
        "schedule": {"last_epoch": run.schedule.last_epoch},
        "ema": {name: value for name, value in ema.items() if name != "shadow_params"},
        "scaler": scaler.state_dict() if scaler else None,
        "reward_moments": run.scale.moments if run.scale else None,
        "course": run.course,
    }


def _load(run: Run, folder: Path, state: dict[str, Any]) -> None:
    """Raises ValueError where the weights are of another network or image tokenizer."""
    tokens = run.contents.get("tokenizer")
    if state.get("contents", {}).get("tokenizer", tokens) != tokens:
        raise ValueError(
            f"{run.folder} was trained on the tokens of another image tokenizer; resume it "
            "with that, or give another --out"
        )
    if run.pipe is not None:
        tensors = load_file(folder / "lora.safetensors")
        for i, parameter in enumerate(run.parameters):
            parameter.data.copy_(tensors[f"lora.{i}"])
        for i, tensor in enumerate(run.kept):
            tensor.copy_(tensors[f"kept.{i}"])
    else:
        tensors = load_file(folder / "model.safetensors")
        try:
            run.plain.load_state_dict(tensors)
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:300]
            raise ValueError(f"{folder} is of another model: {reason}") from error
        if (folder / "average.safetensors").is_file():
            tensors |= load_file(folder / "average.safetensors")
    saved = torch.load(folder / "optimizer.pt", map_location="cpu", weights_only=True)
    restore_optimizer(run.optimizer, saved)
    # Networks had checkpoints of their own once: the steps taken were `stepped`, those of the
    # average stood beside it.
    taken = state["schedule"]["last_epoch"] if "schedule" in state else state["stepped"]
    restore_schedule(run.schedule, run.optimizer, taken)
    if run.ema is not None:
        pairs = zip(_averaged(run), run.parameters, strict=True)
        own = {"decay": run.ema.decay, "shadow_params": [tensors.get(n, p.data) for n, p in pairs]}
        if "n_averaged" in tensors:
            own["optimization_step"] = int(tensors["n_averaged"])
        run.ema.load_state_dict((state.get("ema") or {}) | own)
        run.ema.to(run.parameters[0].device)
    if run.accelerator.scaler is not None and state["scaler"] is not None:
        run.accelerator.scaler.load_state_dict(state["scaler"])
    if run.scale is not None and state["reward_moments"] is not None:
        moments = state["reward_moments"].items()
        run.scale.moments = {name: (mean, square) for name, (mean, square) in moments}
    run.done = run.saved = state["step"]
    run.course = state.get("course", {})


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
