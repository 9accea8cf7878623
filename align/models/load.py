"""`load_pipeline`: a plain diffusers pipeline from a name, a folder, a file or the Hub."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from diffusers.utils import logging as diffusers_logging
from torch import nn
from transformers.utils import logging as transformers_logging

from align.diffusion.denoisers import denoiser_module, family_of
from align.models.attention import set_attention
from align.models.hub import (
    FORMS,
    model_index,
    parts_of,
    pipeline_class,
    reach,
    without_checker,
)
from align.models.parts import check_folders, check_tokenizers, only_variant
from align.models.precision import warn_of_emulation
from align.models.quantize import check_quantize, quantized_denoiser
from align.models.single_files import SINGLE_FILES, load_single_file

EMBEDDED = Path(__file__).parents[1] / "embedded"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def load_pipeline(
    model: str | Path,
    *,
    lora: str | Sequence[str] | None = None,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    attention: str = "auto",
    config: str | Path | None = None,
    quantize: str | None = None,
) -> DiffusionPipeline:
    """A diffusers pipeline on its device, frozen, without safety checker and progress bar.

    `model` is embedded/NAME, a folder, a single file or a Hub id. A single file takes what it
    lacks (configs, tokenizers) from `config`, a diffusers folder or a Hub id that may also be
    written FILE@CONFIG; without one, from a folder beside it named like the file, else from the
    Hub. `lora` is one or several of what `align.models.lora.load_lora` takes, each with an optional
    =WEIGHT.
    The device defaults to CUDA, then MPS, then CPU; the dtype to float32 for embedded models and
    outside CUDA, else to bfloat16 where the GPU has it, else float16. `quantize` (8bit, 4bit) keeps
    the denoiser's linear layers in so many bits: on CUDA, by bitsandbytes, from a folder or Hub id.

    Raises FileNotFoundError for missing models and ValueError for unknown ones, each saying
    what is allowed.
    """
    target = torch_device(device)
    precision = torch_dtype(dtype) or default_dtype(str(model), target)
    warn_of_emulation(target.type, precision)
    source, config = locate(str(model), config)
    if quantize is not None:
        check_quantize(quantize, target)
    with _loading_bars(shown=isinstance(source, str)):
        if not (isinstance(source, Path) and source.is_file()):
            pipe = _from_folder_or_hub(source, precision, quantize)
        elif quantize is None:
            pipe = load_single_file(source, config, precision)
        else:
            raise ValueError(f"quantize needs a diffusers folder or a Hub id; {source} is a file")
    pipe.register_to_config(_name_or_path=str(model))  # is_distilled reads it
    pipe.set_progress_bar_config(disable=True)
    for part in pipe.components.values():
        if isinstance(part, nn.Module):
            part.eval().requires_grad_(False)
    pipe.to(target)
    masked = family_of(pipe).masked_attention
    set_attention(denoiser_module(pipe), attention, target, precision, masked=masked)
    if lora:
        from align.models.lora import load_lora  # it imports peft, which takes a second

        load_lora(pipe, lora)
    return pipe


def embedded_models() -> list[str]:
    """The embedded/NAME of every shipped pipeline."""
    return [
        f"embedded/{index.parent.name}" for index in sorted(EMBEDDED.glob("*/model_index.json"))
    ]


def best_device() -> str:
    """cuda, else mps, else cpu."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def torch_device(device: str | torch.device | None) -> torch.device:
    """The device of this name (default: the best one). Raises ValueError where it is not here."""
    best = best_device()
    try:
        target = torch.device(device or best)
        torch.empty(0, device=target)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(
            f"device is {str(device)!r}, which this machine does not have; the best one is {best!r}"
        ) from error
    return target


def torch_dtype(dtype: str | torch.dtype | None) -> torch.dtype | None:
    """The torch dtype of this name. Raises ValueError naming the allowed ones."""
    if dtype is None or isinstance(dtype, torch.dtype):
        return dtype
    if dtype not in DTYPES:
        raise ValueError(f"dtype is {dtype!r}; it must be one of {', '.join(DTYPES)}")
    return DTYPES[dtype]


def default_dtype(model: str, device: torch.device) -> torch.dtype:
    """float32 for embedded models and outside CUDA; else bfloat16, or float16 on older GPUs."""
    if device.type != "cuda" or model.startswith("embedded/"):
        return torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported(False) else torch.float16


def locate(model: str, config: str | Path | None) -> tuple[Path | str, str | None]:
    """(a folder, a file or a Hub id, the config of a single file)."""
    if model.startswith("embedded/"):
        folder = EMBEDDED / model.removeprefix("embedded/")
        if not (folder / "model_index.json").is_file():
            known = ", ".join(embedded_models()) or "none"
            raise FileNotFoundError(f"there is no {model}; embedded models: {known}")
        return folder, None
    path = Path(model).expanduser()
    named, at, after = model.rpartition("@")
    if at and not path.exists() and Path(named).expanduser().is_file():
        path, config = Path(named).expanduser(), after
    if path.is_dir():
        if not (path / "model_index.json").is_file():
            raise FileNotFoundError(f"{path} is no diffusers folder: it has no model_index.json")
        return path, None
    if path.is_file():
        if path.suffix.lower() not in SINGLE_FILES:
            raise ValueError(f"{path} is no checkpoint; it must end in {' or '.join(SINGLE_FILES)}")
        beside = path.with_suffix("")
        if config is None and (beside / "model_index.json").is_file():
            config = beside
        return path, None if config is None else str(config)
    if (
        model.count("/") != 1
        or path.suffix.lower() in SINGLE_FILES
        or model.startswith((".", "/", "~"))
    ):
        raise FileNotFoundError(f"there is no model {model!r}; allowed: {FORMS}")
    return model, None


@contextmanager
def _loading_bars(shown: bool) -> Iterator[None]:
    """Progress bars for downloads only: what lies on the disk is loaded in a moment."""
    kits = [] if shown else [diffusers_logging, transformers_logging]
    active = [kit for kit in kits if kit.is_progress_bar_enabled()]
    for kit in active:
        kit.disable_progress_bar()
    try:
        yield
    finally:
        for kit in active:
            kit.enable_progress_bar()


def _from_folder_or_hub(source: Path | str, dtype: torch.dtype, quantize: str | None) -> Any:
    index = model_index(source)
    kind = pipeline_class(source, index)
    settings: dict[str, Any] = {"dtype": dtype, **without_checker(kind)}
    names = {
        name: kind_of_part
        for name, (library, kind_of_part) in parts_of(index).items()
        if library and name not in settings
    }
    check_folders(source, names)
    if isinstance(source, Path):
        settings["variant"] = only_variant(source, names)

    def load() -> Any:
        variant = settings.get("variant")
        parts = quantized_denoiser(source, index, quantize, dtype, variant) if quantize else {}
        return reach(source, kind.from_pretrained, source, **settings, **parts)

    try:
        pipe = load()
    except (FileNotFoundError, ValueError):
        if isinstance(source, Path) or (variant := only_variant(source, names)) is None:
            raise
        settings["variant"] = variant
        pipe = load()
    check_tokenizers(pipe, source)
    return pipe
