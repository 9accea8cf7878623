"""`empty_pipeline`: a model's real architecture on the `meta` device, without its weights."""

from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from huggingface_hub import snapshot_download
from torch import nn
from transformers import PreTrainedModel

from align.models.hub import model_index, parts_of, pipeline_class, reach, without_checker
from align.models.load import locate
from align.models.single_files import guessed_config

CONFIGS = ["*.json", "*.txt", "*.model"]  # of a Hub repository: all but its weights
UNUSED = ("safety_checker", "feature_extractor", "image_encoder")


def empty_pipeline(model: str, dtype: torch.dtype) -> Any:
    """The pipeline of `model` (as `load_pipeline` takes it), its parts on `meta` in this dtype.

    Reads configs and tokenizers alone; from the Hub, nothing else is downloaded. Raises what
    `load_pipeline` raises.
    """
    source, config = locate(model, None)
    if isinstance(source, Path) and source.is_file():
        config = config or guessed_config(source)
        source = Path(config) if Path(config).is_dir() else config
    folder = source
    if isinstance(source, str):
        folder = Path(reach(source, snapshot_download, source, allow_patterns=CONFIGS))
    index = model_index(folder)
    kind = pipeline_class(model, index)
    parts: dict[str, Any] = dict.fromkeys(UNUSED) if without_checker(kind) else {}
    for name, value in index.items():
        if name.startswith("_") or name in UNUSED:
            continue
        parts[name] = value
    for name, (library, part) in parts_of(index).items():
        if name in parts:
            parts[name] = part and _part(library, part, Path(folder), name, dtype)
    pipe = kind(**{k: v for k, v in (parts | without_checker(kind)).items() if _takes(kind, k)})
    pipe.register_to_config(_name_or_path=model)
    return pipe


def _takes(kind: Any, name: str) -> bool:
    return name in kind.__init__.__annotations__


def _part(library: str, name: str, folder: Path, subfolder: str, dtype: torch.dtype) -> Any:
    kind: Any = getattr(diffusers if library == "diffusers" else transformers, name)
    model = any(parent is diffusers.ModelMixin for parent in kind.__mro__)
    encoder = any(parent is PreTrainedModel for parent in kind.__mro__)
    if model:
        with torch.device("meta"):
            module = kind.from_config(kind.load_config(folder, subfolder=subfolder))
    elif encoder:
        settings = kind.config_class.from_pretrained(folder, subfolder=subfolder)
        with torch.device("meta"):
            module = kind(settings)
    elif library == "diffusers":
        return kind.from_pretrained(folder, subfolder=subfolder)
    else:
        return kind.from_pretrained(folder / subfolder)
    return frozen(module, dtype)


def frozen(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """The module on `meta`, in this dtype, as the frozen part of a pipeline."""
    return module.to("meta", dtype).eval().requires_grad_(False)
