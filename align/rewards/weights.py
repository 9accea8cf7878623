"""Published weights on this machine: where they lie, how they are read, who shares them.

Nothing here downloads; `align fetch` does. A file is looked for

1. in the folder that an expression names (`hps:/path/to/folder`), directly or under OWNER/NAME,
2. in the folder of the environment variable `ALIGN_WEIGHTS`, under OWNER/NAME,
3. in the Hub's own cache on this machine.
"""

import json
import os
import pickle
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from align.rewards.catalogue import Source, size_text
from align.runs.files import brief

Model = TypeVar("Model")
MODEL_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
CHECKPOINTS = (".pt", ".pth", ".bin", ".safetensors", ".ckpt")
_SHARED: ContextVar[dict[tuple, Any] | None] = ContextVar("shared_towers", default=None)


def own_folder() -> Path:
    """Where files lie that are not in the Hub's cache: `ALIGN_WEIGHTS`, or a folder beside it."""
    from huggingface_hub import constants

    return Path(os.environ.get("ALIGN_WEIGHTS") or Path(constants.HF_HOME) / "align").expanduser()


def find_file(source: Source, name: str, given: Path | None = None) -> Path | None:
    """One file of a source, or None; `given` is the folder that the expression names."""
    from huggingface_hub import try_to_load_from_cache

    places = [own_folder() / source.repo]
    if given is not None:
        places = [given, given / source.repo, *places]
    for place in places:
        if (place / name).is_file():
            return place / name
    cached = try_to_load_from_cache(source.repo, name) if source.url is None else None
    return Path(cached) if isinstance(cached, str) else None


def missing_files(source: Source, given: Path | None = None) -> list[str]:
    """What of a source is not on this machine."""
    missing = [name for name in source.files if find_file(source, name, given) is None]
    if source.model and not any(find_file(source, name, given) for name in MODEL_FILES):
        missing.append(MODEL_FILES[0])
    if source.any_of and not any(find_file(source, name, given) for name in source.any_of):
        missing.append(source.any_of[0])
    return missing


def find(source: Source, term: str, given: Path | None = None) -> Path:
    """The folder with a source's files.

    Raises FileNotFoundError naming the first missing file and the command that fetches it.
    """
    missing = missing_files(source, given)
    if missing:
        place = f" in {given}" if given is not None else ""
        raise FileNotFoundError(
            f"{term} needs {missing[0]} of {source.repo}, which is not installed{place}; "
            f"`align fetch {fetch_name(term)}` downloads it ({size_text(source.size)}, licence "
            f"{source.licence})"
        )
    first = source.files[0]
    path = find_file(source, first, given)
    assert path is not None  # none is missing
    return path.parent


def fetch_name(term: str) -> str:
    """What to give `align fetch` for a term; without a local path, which cannot be fetched."""
    name, _, argument = term.partition(":")
    local = argument.startswith((".", "/", "~")) or Path(argument).exists()
    return name if not argument or local else term


def local_path(argument: str | None) -> Path | None:
    """The file or folder that an argument names, if it looks like one.

    Raises FileNotFoundError for what is written as a path and is not there.
    """
    if argument is None:
        return None
    path = Path(argument).expanduser()
    if path.exists():
        return path
    if argument.startswith((".", "/", "~")) or path.suffix in CHECKPOINTS:
        raise FileNotFoundError(f"there is no file or folder {argument}")
    return None


def locate_file(name: str, source: Source, argument: str | None) -> tuple[Path, str, Path | None]:
    """(weights file, the term as written, folder to look in first) of a reward of one file.

    `argument` is None, the file, or a folder with it. Raises FileNotFoundError where the weights
    are not on this machine, ValueError for an argument that is no path.
    """
    path = local_path(argument)
    if argument is not None and path is None:
        raise ValueError(f"{name}:{argument} is no file or folder")
    term = name if argument is None else f"{name}:{argument}"
    given = None if path is None else path if path.is_dir() else path.parent
    file = path if path and path.is_file() else find(source, term, given) / source.files[0]
    return file, term, given


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """The tensors of a `.safetensors` file, or of a `.pt` file without running any code in it.

    A dictionary around them (`state_dict`, `model`) is taken off.

    Raises:
        ValueError: a damaged file, one that holds more than tensors, or no tensors.
    """
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        content = torch.load(
            path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path)
        )
    except pickle.UnpicklingError as error:
        if "Unsupported" in str(error) or "GLOBAL" in str(error):
            raise ValueError(
                f"{path} holds objects that would run code when they are read; it is refused, "
                "only files of plain tensors are allowed"
            ) from error
        raise ValueError(f"{path} is damaged or no checkpoint; fetch it again") from error
    except (SafetensorError, RuntimeError, EOFError, ValueError, OSError) as error:
        raise ValueError(
            f"{path} is damaged, truncated or no checkpoint ({brief(error)}); fetch it again"
        ) from error
    for wrapper in ("state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    if not isinstance(content, dict) or not all(isinstance(v, Tensor) for v in content.values()):
        raise ValueError(f"{path} holds no dictionary of tensors")
    return content


def fill(
    model: Model,
    tensors: dict[str, Tensor],
    path: Path,
    dtype: torch.dtype = torch.float32,
    *,
    assign: bool = False,
) -> Model:
    """Load converted tensors strictly, as `dtype`; the model comes back frozen, in eval mode.

    With `assign` the tensors themselves become its weights: big ones are not there twice.
    Raises ValueError naming missing or unexpected keys or a shape that does not fit.
    """
    assert isinstance(model, torch.nn.Module)
    try:
        model.load_state_dict(
            {k: v.to(dtype) if v.is_floating_point() else v for k, v in tensors.items()},
            strict=True,
            assign=assign,
        )
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines()[1:]]
        shown = "; ".join(line if len(line) < 200 else f"{line[:200]}…" for line in lines[:2])
        raise ValueError(f"{path} is not a checkpoint of this model: {shown}") from error
    return model.eval().requires_grad_(False)


def load_model(kind: Any, folder: Path, dtype: torch.dtype = torch.float32, **settings: Any) -> Any:
    """A transformers model of a folder: frozen, in eval mode, with all of its weights.

    Raises ValueError where its files are damaged or lack weights.
    """
    from align.models.load import _loading_bars  # it imports diffusers

    try:
        with _loading_bars(shown=False):
            model, info = kind.from_pretrained(
                folder,
                dtype=dtype,
                local_files_only=True,
                output_loading_info=True,
                **settings,
            )
    except (SafetensorError, OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise ValueError(
            f"{folder} cannot be read as a {kind.__name__} ({brief(error)}); fetch it again"
        ) from error
    if info["missing_keys"] or info["mismatched_keys"]:
        lacking = sorted(map(str, [*info["missing_keys"], *info["mismatched_keys"]]))
        raise ValueError(
            f"{folder} is no {kind.__name__}: it lacks {len(lacking)} weights, such as {lacking[0]}"
        )
    return model.eval().requires_grad_(False)


def model_type(folder: Path) -> str:
    """The `model_type` of a folder's config.json. Raises FileNotFoundError or ValueError."""
    path = folder / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"{folder} is no model of transformers: it has no config.json")
    try:
        return str(json.loads(path.read_text(encoding="utf-8"))["model_type"])
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{path} names no model_type") from error


@contextmanager
def sharing() -> Iterator[None]:
    """Within this block, `shared` makes each thing once: the terms of one expression."""
    token = _SHARED.set({})
    try:
        yield
    finally:
        _SHARED.reset(token)


def shared(key: tuple, make: Callable[[], Model]) -> Model:
    """What `make` returns, or what it returned for this key before in the same expression.

    Expressions do not share with each other, as `.to()` of one would move the other.
    """
    known = _SHARED.get()
    if known is None:
        return make()
    if key not in known:
        known[key] = make()
    return known[key]
