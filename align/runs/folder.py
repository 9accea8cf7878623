"""A run's folder: run.json, metrics.jsonl, PNG files that say how they were made."""

import dataclasses
import json
import math
import os
import platform
import shutil
import subprocess
import sys
import time
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from align.config.checks import ConfigT, from_dict, to_dict
from align.runs.files import atomic_path, clear_disk_errors, finite, write_json
from align.runs.files import write_atomic as write_atomic

if TYPE_CHECKING:
    from jaxtyping import Float
    from PIL.Image import Image
    from torch import Tensor

_PACKAGES = ("align-diffusion", "torch", "diffusers", "transformers", "peft", "accelerate", "numpy")
# Fields that say where a run is written, not what it does: a new run does not inherit them.
_PLACE = ("out", "overwrite", "resume")


def open_run(
    out: str | Path | None,
    config: Any,
    overwrite: bool = False,
    resume: bool | str | None = False,
    *,
    command: str,
    **ran: Any,
) -> Path:
    """Make the run's folder (default runs/COMMAND-TIME), write its run.json, return its path.

    `ran` are further keys of run.json: what the settings came to, such as the scheduler's class.
    With `resume` an existing run.json stays as it is; `record_resume` goes on with it.

    Raises ValueError where the folder is not empty and neither `overwrite` nor `resume` is given,
    or where `overwrite` would delete a folder that no run has written.
    """
    check_folder(out, overwrite, resume)
    name = f"{command}-{time.strftime('%Y%m%d-%H%M%S')}"
    folder = Path(out) if out else _unused(Path("runs") / name)
    for item in list(folder.iterdir()) if overwrite and folder.is_dir() else ():
        shutil.rmtree(item) if item.is_dir() and not item.is_symlink() else item.unlink()
    with clear_disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    if not (resume and (folder / "run.json").is_file()):
        write_json(folder / "run.json", describe_run(config, command) | ran)
    return folder


def record_resume(folder: Path, config: Any, step: int) -> None:
    """Let run.json say that a run goes on after `step` updates with this configuration.

    What it said before goes to its list `earlier`: when that part began, the step it is kept
    until, and the settings that were others.
    """
    former = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    described = finite(describe_run(config, former["command"]))
    if step:
        changed = {
            name: value
            for name, value in former["config"].items()
            if name in described["config"]
            and name not in _PLACE
            and described["config"][name] != value
        }
        part = {name: former.get(name) for name in ("started", "arguments", "git_commit")}
        part |= {"until_step": step, "config": changed}
        described["earlier"] = [*former.get("earlier", ()), part]
    write_json(folder / "run.json", former | described)


def check_folder(
    out: str | Path | None, overwrite: bool = False, resume: bool | str | None = False
) -> None:
    """Raise ValueError where `open_run` would refuse the folder; for use before long work."""
    folder = Path(out or "runs")
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"--out {folder} is a file; give a folder")
    if not out or resume or not folder.is_dir() or not any(folder.iterdir()):
        return
    if not overwrite:
        raise ValueError(
            f"--out {folder} exists and is not empty; give another folder, --overwrite "
            "to replace it, or --resume to continue it where the command can"
        )
    if not (folder / "run.json").is_file():
        raise ValueError(f"--overwrite {folder}: refused, no run wrote that folder")


def _unused(folder: Path) -> Path:
    """The folder, or the first of folder-2, folder-3, … that does not exist."""
    count, candidate = 1, folder
    while candidate.exists():
        count += 1
        candidate = folder.with_name(f"{folder.name}-{count}")
    return candidate


def describe_run(config: Any, command: str) -> dict[str, Any]:
    """What run.json holds: command, full configuration, seed, versions, git commit, start time."""
    values = to_dict(config) if dataclasses.is_dataclass(config) else dict(config)
    versions = {"python": platform.python_version(), "platform": platform.platform()}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return {
        "command": command,
        "arguments": sys.argv[1:],
        "config": values,
        "seed": values.get("seed"),
        "versions": versions,
        "git_commit": git_commit(),
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def git_commit() -> str | None:
    """The commit of the checkout that `align` runs from, with `+changes`; None elsewhere."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    git = ["git", "-C", str(root)]
    try:
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True)
        status = subprocess.run(
            [*git, "status", "--porcelain", "--untracked-files=no"], capture_output=True, text=True
        )
    except OSError:  # no git on this machine
        return None
    return head.stdout.strip() + ("+changes" if status.stdout.strip() else "") or None


def load_config(path: str | Path, kind: type[ConfigT], command: str) -> ConfigT:
    """The configuration of a saved run.json (or of a plain JSON object of fields), less its folder.

    Raises FileNotFoundError where there is no such file, ValueError where it is not JSON, not of
    this command, or has an unknown field or value.
    """
    path = Path(path)
    path = path / "run.json" if path.is_dir() else path
    if not path.is_file():
        raise FileNotFoundError(f"no configuration file {path}")
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(data, dict):
        raise ValueError(f"{path} holds {type(data).__name__}; it must hold a JSON object")
    if data.get("command", command) != command:
        raise ValueError(f"{path} is of `align {data['command']}`; this is `align {command}`")
    values = data.get("config", data)
    try:
        return from_dict(kind, {k: v for k, v in values.items() if k not in _PLACE})
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error


def log_metrics(folder: str | Path, **record: Any) -> None:
    """Append one JSON object to the run's metrics.jsonl; NaN and infinities become null."""
    path = Path(folder) / "metrics.jsonl"
    with clear_disk_errors(path), path.open("ab+") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(size - 1, 0))
        torn = file.read(1) not in (b"", b"\n")  # by a crash: do not glue the new line to it
        line = json.dumps(finite(record), ensure_ascii=False)
        file.write(("\n" * torn + line + "\n").encode())


def read_metrics(folder: str | Path) -> list[dict[str, Any]]:
    """The records of a run's metrics.jsonl; a line torn by a crash or a full disk is left out."""
    path = Path(folder) / "metrics.jsonl"
    if not path.exists():
        return []
    records = []
    for line in path.read_text(encoding="utf-8").split("\n"):
        with suppress(ValueError):
            records.append(json.loads(line))
    return records


def to_pil(image: "Float[Tensor, '3 h w']") -> "Image":
    """An image in [0, 1] as 8-bit PIL, rounded as diffusers does."""
    from PIL import Image

    pixels = (image.detach().float().clamp(0, 1) * 255).round().byte().permute(1, 2, 0)
    return Image.fromarray(pixels.cpu().numpy())


def save_image(
    path: str | Path,
    image: "Float[Tensor, '3 h w'] | Image",
    *,
    prompt: str,
    seed: int | None = None,
    model: str = "",
    negative_prompt: str | None = None,
    **settings: Any,
) -> None:
    """Save a PNG whose text says how it was made.

    Plain keys `prompt`, `negative_prompt`, `seed`, `model` and `settings` (JSON), and `parameters`,
    the form that A1111 writes and ComfyUI and image browsers read. `settings` are further values,
    such as `num_inference_steps`, `guidance_scale`, `scheduler` and `lora`; None is left out.
    """
    from PIL.Image import Image
    from PIL.PngImagePlugin import PngInfo

    picture = image if isinstance(image, Image) else to_pil(image)
    settings = {key: value for key, value in settings.items() if value not in (None, (), [])}
    text = {"prompt": prompt, "negative_prompt": negative_prompt, "seed": seed, "model": model}
    text["settings"] = json.dumps(finite(settings), ensure_ascii=False)
    text["parameters"] = _parameters(text, settings, picture.size)
    info = PngInfo()
    for key, value in text.items():
        if value is not None:
            info.add_text(key, str(value))
    with atomic_path(path) as temporary:
        picture.save(temporary, format="PNG", pnginfo=info)


def _parameters(text: dict[str, Any], settings: dict[str, Any], size: tuple[int, int]) -> str:
    """The text of A1111's `parameters` key."""
    known = {
        "Steps": settings.get("num_inference_steps"),
        "Sampler": settings.get("scheduler"),
        "CFG scale": settings.get("guidance_scale"),
        "Seed": text["seed"],
        "Size": f"{size[0]}x{size[1]}",
        "Model": text["model"] or None,
    }
    rest = {
        k: v
        for k, v in settings.items()
        if k not in ("num_inference_steps", "scheduler", "guidance_scale")
    }
    pairs = {**known, **rest, "Version": f"align {version('align-diffusion')}"}
    lines = [text["prompt"]]
    if text["negative_prompt"]:
        lines.append(f"Negative prompt: {text['negative_prompt']}")
    # A value with a comma or colon is quoted, as A1111 does, so that the line splits back.
    lines.append(", ".join(f"{k}: {_quoted(v)}" for k, v in pairs.items() if v is not None))
    return "\n".join(lines)


def _quoted(value: Any) -> str:
    text = ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
    return json.dumps(text, ensure_ascii=False) if set(text) & set(',:\n"') else text


def image_grid(
    images: "Float[Tensor, 'b 3 h w']", columns: int | None = None, gap: int = 2
) -> "Float[Tensor, '3 h2 w2']":
    """Images side by side on white, row by row; by default about as many columns as rows."""
    count, channels, height, width = images.shape
    if count == 0:
        raise ValueError("a grid needs at least one image")
    columns = columns or math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    shape = (channels, rows * (height + gap) - gap, columns * (width + gap) - gap)
    grid = images.new_ones(shape)
    for index, image in enumerate(images.detach()):
        top, left = index // columns * (height + gap), index % columns * (width + gap)
        grid[:, top : top + height, left : left + width] = image
    return grid


def grid_images(
    grid: "Float[Tensor, '3 h2 w2']", count: int, gap: int = 2
) -> "Float[Tensor, 'b 3 h w']":
    """The `count` images that `image_grid` put side by side with its own number of columns."""
    columns = math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    height, width = (grid.shape[1] + gap) // rows - gap, (grid.shape[2] + gap) // columns - gap
    corners = [divmod(index, columns) for index in range(count)]
    images = grid.new_empty(count, len(grid), height, width)
    for image, (y, x) in zip(images, corners, strict=True):
        image.copy_(grid[:, y * (height + gap) :, x * (width + gap) :][:, :height, :width])
    return images
