"""Reaching diffusers folders and Hub repositories, with errors that say what to do."""

import json
from pathlib import Path
from typing import Any

import diffusers
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import GatedRepoError, HFValidationError, HTTPError
from safetensors import SafetensorError

from align.diffusion.denoisers import FAMILIES, nearest_kind
from align.runs.files import brief

FORMS = "embedded/NAME, a diffusers folder, a .safetensors or .ckpt file, or a Hub id OWNER/NAME"


def pipeline_class(source: Path | str, index: dict[str, Any]) -> Any:
    """The class that a model_index.json names. Raises ValueError where it is of no known family."""
    name = str(index.get("_class_name"))
    if name not in FAMILIES:
        raise ValueError(f"{source} is a {name}; {nearest_kind(name)}")
    return getattr(diffusers, name)


def model_index(source: Path | str) -> dict[str, Any]:
    """The model_index.json of a folder or Hub repository. Raises ValueError where it is damaged."""
    path = Path(source) / "model_index.json"
    if not Path(source).is_dir():
        path = Path(reach(source, hf_hub_download, str(source), path.name))
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # no JSON, or no text
        raise ValueError(f"{path} is damaged ({error})") from error
    if not isinstance(index, dict):
        raise ValueError(f"{path} is no model's index; it must be a JSON object")
    return index


def parts_of(index: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """(library, class) of each part that a model_index.json names, None for absent ones; its
    other lists are settings, such as Krea 2's layers."""
    lists = {name: value for name, value in index.items() if isinstance(value, list)}
    return {
        name: (value[0], value[1])
        for name, value in lists.items()
        if len(value) == 2 and all(isinstance(one, str | None) for one in value)
    }


def without_checker(kind: Any) -> dict[str, Any]:
    """The arguments that leave a safety checker out, where the pipeline has one."""
    if "safety_checker" not in kind.__init__.__annotations__:
        return {}
    return {"safety_checker": None, "requires_safety_checker": False}


def reach(source: Path | str, load: Any, *arguments: Any, **settings: Any) -> Any:
    """Call a loader of diffusers, its Hub errors as one sentence that says what to do."""
    try:
        return load(*arguments, **settings)
    except GatedRepoError as error:
        raise FileNotFoundError(
            f"{source} is gated: accept its licence on https://huggingface.co/{source}, then "
            "run `hf auth login`"
        ) from error
    except (HFValidationError, HTTPError, OSError) as error:
        if isinstance(source, Path):
            raise FileNotFoundError(f"{source} is not a complete model ({brief(error)})") from error
        raise FileNotFoundError(
            f"{source} is no local path and could not be loaded from the Hub; allowed: {FORMS} "
            f"({brief(error)})"
        ) from error
    except ImportError as error:
        if "SOCKS" not in str(error):
            raise
        raise FileNotFoundError(
            f"{source} could not be loaded from the Hub: the proxy of this environment is SOCKS, "
            "which needs `pip install socksio`; or unset all_proxy"
        ) from error
    except SafetensorError as error:
        raise ValueError(f"{source} has a damaged weights file ({error})") from error
