"""What lies in a diffusers folder or repository: the weights' variant, and parts that are empty."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from huggingface_hub import list_repo_files, try_to_load_from_cache
from huggingface_hub.errors import HFValidationError, HTTPError

# In the order in which they are taken.
VARIANTS = ("fp16", "bf16", "fp32")
_WEIGHTS = re.compile(
    r"(?:diffusion_pytorch_model|pytorch_model|model)(?:-\d+-of-\d+)?"
    r"(?:\.(?P<variant>[\w-]+?))?(?:-\d+-of-\d+)?\.(?:safetensors|bin)"
)
UNBOUNDED = 10**9  # transformers' length of prompts where a tokenizer's config says none


def only_variant(source: Path | str, parts: Iterable[str]) -> str | None:
    """The `variant` without which these parts (subfolders) cannot be loaded; None for plain
    files, or where there is no such one."""
    needed: list[set[str]] = []
    files = _files(source)
    for part in parts:
        inside = [name.removeprefix(f"{part}/") for name in files if name.startswith(f"{part}/")]
        found = {m["variant"] for name in inside if (m := _WEIGHTS.fullmatch(name))}
        if found and None not in found:
            needed.append(found)
    common = set.intersection(*needed) if needed else set()
    return next((v for v in (*VARIANTS, *sorted(common)) if v in common), None)


def _files(source: Path | str) -> list[str]:
    """Paths within a folder or a repository of the Hub; of its copy here without a connection."""
    if isinstance(source, str):
        try:
            return list_repo_files(source)
        except (HFValidationError, HTTPError, OSError):
            cached = try_to_load_from_cache(source, "model_index.json")
            if not isinstance(cached, str):
                return []
            source = Path(cached).parent
    return [file.relative_to(source).as_posix() for file in Path(source).glob("*/*")]


def check_folders(source: Path | str, parts: dict[str, str]) -> None:
    """Raise FileNotFoundError naming a part, by its class, that a folder has no subfolder of."""
    if not isinstance(source, Path):
        return
    for name, kind in parts.items():
        if not (source / name).is_dir():
            raise FileNotFoundError(
                f"{source} is not a complete model: it has no {name}/, which its model_index.json "
                f"calls a {kind}"
            )


def check_tokenizers(pipe: Any, source: Path | str) -> None:
    """Raise FileNotFoundError where a tokenizer came without its vocabulary, as transformers makes
    one where the files are missing; give one without a length that of its text encoder."""
    for name, part in pipe.components.items():
        if not (name.startswith("tokenizer") and hasattr(part, "get_vocab")):
            continue
        if len(part) < 1000 and not set(part.get_vocab()) - set(part.all_special_tokens):
            place = source / name if isinstance(source, Path) else f"{name}/ of {source}"
            raise FileNotFoundError(
                f"{source} is not a complete model: its {name} ({type(part).__name__}) is empty; "
                f"{place} has no vocabulary, such as tokenizer.json, or vocab.json and merges.txt"
            )
        encoder = pipe.components.get(name.replace("tokenizer", "text_encoder"))
        positions = getattr(getattr(encoder, "config", None), "max_position_embeddings", None)
        if part.model_max_length > UNBOUNDED and positions and "CLIP" in type(part).__name__:
            part.model_max_length = positions
