"""LoRA files: reading what people have, writing diffusers' and kohya's layouts, mixing deltas.

In memory a LoRA is `{"unet.down_blocks...to_q": (down, up)}`: the component and path of a layer
and two factors whose product `up @ down` is what is added to its weight. Every scale (alpha,
rank, weight) is folded into `up`, so factors can be compared, added and written anywhere.
"""

import json
import math
import pickle
import re
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download, list_repo_files
from huggingface_hub.errors import EntryNotFoundError, HFValidationError, HTTPError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from align.runs.files import atomic_path, brief, read_text

Factors = dict[str, tuple[Tensor, Tensor]]
FILE_NAME = "pytorch_lora_weights.safetensors"
# What diffusers' first trainers (AlignProp's, DDPO's) and PEFT call it.
OTHER_NAMES = ("pytorch_lora_weights.bin", "adapter_model.safetensors", "adapter_model.bin")
PEFT_CONFIG = "adapter_config.json"
SHIPPED = Path(__file__).parents[1] / "embedded" / "loras"
PICKLES = (".pt", ".pth", ".bin", ".ckpt")
_FACTOR = re.compile(r"((?:unet|transformer|text_encoder\w*)\..+)\.(lora_A|lora_B)\.weight")


def parse_lora(spec: str) -> tuple[str, float]:
    """("runs/a/lora", 0.5) of "runs/a/lora=0.5"; the weight is 1 where none is given.

    What exists on the disk under the whole name, such as `runs/lr=0.001`, is a path.
    """
    source, equals, weight = spec.rpartition("=")
    if not equals or Path(spec).expanduser().exists():
        return spec, 1.0
    try:
        number = float(weight)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(
            f"there is no LoRA {spec!r}, and it ends in {weight!r}; a LoRA's weight is a number"
        )
    return source, number


def find_lora(source: str) -> Path:
    """The LoRA file that embedded/NAME, a file, a folder, a run's folder or a Hub id stands for.

    Raises FileNotFoundError where there is none, or a folder has several.
    """
    if source.startswith("embedded/"):
        return _find_shipped(source)
    path = Path(source).expanduser()
    if path.is_file():
        return path
    if path.is_dir():
        return _find_in_folder(path)
    if source.count("/") not in (1, 2) or source.startswith((".", "/", "~")):
        raise FileNotFoundError(
            f"there is no LoRA {source!r}; allowed: embedded/NAME, a file, a folder, a run's "
            "folder, or a Hub id"
        )
    return _find_on_hub(source)


def shipped_loras() -> dict[str, str]:
    """The LoRAs that ship with the package, embedded/NAME, and the models that they are for."""
    runs = sorted(SHIPPED.glob("*/run.json"))
    models = [json.loads(run.read_text(encoding="utf-8"))["config"]["model"] for run in runs]
    return {f"embedded/{run.parent.name}": model for run, model in zip(runs, models, strict=True)}


def _find_shipped(source: str) -> Path:
    known = shipped_loras()
    if source not in known:
        raise FileNotFoundError(
            f"there is no LoRA {source!r} here; those that ship are: {', '.join(known) or 'none'}"
        )
    return _find_in_folder(SHIPPED / source.removeprefix("embedded/"))


def _find_in_folder(folder: Path) -> Path:
    for name in (FILE_NAME, f"lora/{FILE_NAME}", *OTHER_NAMES):
        if (folder / name).is_file():
            return folder / name
    files = sorted(file for file in folder.iterdir() if not file.name.startswith("."))
    for suffixes in ((".safetensors",), PICKLES):
        weights = [file for file in files if file.suffix.lower() in suffixes]
        if len(weights) == 1:
            return weights[0]
        if weights:
            raise FileNotFoundError(
                f"{folder} holds no {FILE_NAME}, but {len(weights)} files of weights; name one: "
                f"{some([file.name for file in weights])}"
            )
    below = sorted(
        str(file.parent.relative_to(folder))
        for name in (FILE_NAME, *OTHER_NAMES)
        for file in folder.glob(f"**/{name}")
    )
    hint = f"; there are some below it, in {some(below)}" if below else ""
    raise FileNotFoundError(f"{folder} holds no {FILE_NAME} and no lora/{FILE_NAME}{hint}")


def _find_on_hub(source: str) -> Path:
    owner, name, *file = source.split("/")
    try:
        if not file:
            names = list_repo_files(f"{owner}/{name}")
            known = [n for n in (FILE_NAME, *OTHER_NAMES) if n in names][:1]
            file = known or [n for n in names if n.lower().endswith(".safetensors")]
        if len(file) != 1:
            raise FileNotFoundError(
                f"{source} holds {len(file)} safetensors files; name one, as {source}/FILE"
            )
        if file[0] in OTHER_NAMES:
            with suppress(EntryNotFoundError):
                hf_hub_download(f"{owner}/{name}", PEFT_CONFIG)  # it comes to lie beside the file
        return Path(hf_hub_download(f"{owner}/{name}", file[0]))
    except (HFValidationError, HTTPError, OSError) as error:
        if type(error) is FileNotFoundError:
            raise
        raise FileNotFoundError(
            f"the LoRA {source} is no local path and could not be loaded from the Hub "
            f"({brief(error)})"
        ) from error


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and the metadata of a safetensors file, or of a pickle of plain tensors."""
    try:
        if path.suffix.lower() in PICKLES:
            loaded: Any = torch.load(path, map_location="cpu", weights_only=True)
        else:
            with safe_open(path, "pt") as file:
                metadata = file.metadata() or {}
                return {key: file.get_tensor(key) for key in file.keys()}, metadata  # noqa: SIM118
    except pickle.UnpicklingError as error:
        raise ValueError(pickled(path, error)) from error
    except (SafetensorError, RuntimeError, EOFError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as weights ({brief(error)})") from error
    except Exception as error:  # what a broken pickle raises
        raise ValueError(f"{path} cannot be read as weights ({brief(error)})") from error
    if isinstance(loaded, dict) and isinstance(loaded.get("state_dict"), dict):
        loaded = loaded["state_dict"]  # beside a trainer's counters
    if not isinstance(loaded, dict) or not all(isinstance(v, Tensor) for v in loaded.values()):
        raise ValueError(f"{path} holds more than plain tensors; save its tensors alone")
    return loaded, {}


def pickled(path: Path, error: BaseException) -> str:
    """Why a pickle is not opened, and what to do, as a sentence."""
    named = re.search(r"GLOBAL ([\w.]+)", str(error))
    what = f" ({named[1]})" if named else ""
    return (
        f"{path} holds more than plain tensors{what}, and opening it would run its code; where you "
        "trust it, load it with torch.load(..., weights_only=False) and save its tensors alone, "
        "with safetensors.torch.save_file"
    )


def check_kind(path: Path, tensors: dict[str, Tensor]) -> None:
    """Raise ValueError for adapters that are no sum of weight deltas."""
    kinds = {
        "a DoRA, which has no factors to mix; merge it elsewhere": ("dora_scale", "magnitude"),
        "an OFT, which turns weights and adds nothing to them; merge it elsewhere": ("oft_",),
    }
    for kind, marks in kinds.items():
        keys = [key for key in tensors if any(mark in key for mark in marks)]
        if keys:
            raise ValueError(f"{path} is {kind} (it has {some(keys)})")


def some(names: Sequence[str], limit: int = 3) -> str:
    """The first of some names, and how many more there are."""
    shown, more = ", ".join(names[:limit]), len(names) - limit
    return f"{shown} and {more} more" if more > 0 else shown or "none"


def read_factors(source: str) -> Factors | None:
    """The LoRA of a file in diffusers' layout; None where it is in another one."""
    path = find_lora(source)
    tensors, metadata = read_tensors(path)
    matches = {key: _FACTOR.fullmatch(key) for key in tensors}
    if not tensors or not all(matches.values()):
        return None
    layers = {match[1] for match in matches.values() if match}
    try:
        factors = {
            layer: (tensors[f"{layer}.lora_A.weight"], tensors[f"{layer}.lora_B.weight"])
            for layer in sorted(layers)
        }
    except KeyError as error:
        raise ValueError(f"{path} is incomplete: it lacks {error}") from None
    settings, scaled = lora_settings(path, metadata, ""), {}
    for layer, (down, up) in factors.items():
        alpha, _, root = scale_of(settings, layer)
        rank = len(down) ** 0.5 if root else len(down)
        scaled[layer] = down.float(), up.float() * (1.0 if alpha is None else alpha / rank)
    return scaled


def lora_settings(path: Path, metadata: dict[str, str], denoiser: str) -> dict[str, Any]:
    """What is said of a LoRA's scale outside of its keys: by diffusers in the file's metadata, by
    component; by PEFT, in `adapter_config.json` beside it, of the denoiser alone."""
    settings = json.loads(metadata.get("lora_adapter_metadata") or "{}")
    config = path.with_name(PEFT_CONFIG)
    if settings or path.name not in OTHER_NAMES or not config.is_file():
        return settings
    try:
        stated = json.loads(read_text(config, "file"))
        return {f"{denoiser}.{name}": value for name, value in stated.items()}
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{config} is damaged ({brief(error)})") from error


def scale_of(settings: dict[str, Any], layer: str) -> tuple[float | None, int | None, bool]:
    """(alpha of a layer, None where that is its rank; the rank by the settings; whether the root
    of the rank divides alpha)."""
    component, _, path = layer.partition(".")
    alpha = settings.get(f"{component}.lora_alpha", settings.get(f"{component}.alpha"))
    for pattern, value in (settings.get(f"{component}.alpha_pattern") or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", path):
            alpha = value
    rank = settings.get(f"{component}.r")
    return alpha, rank, bool(settings.get(f"{component}.use_rslora"))


def mix_factors(weighted: Iterable[tuple[Factors, float]]) -> Factors:
    """The LoRA whose deltas are the weighted sum of the given ones, exactly; ranks add up.

    Mixing `down` and `up` apart, as linear interpolation of the files does, is not that: cross
    terms appear, and scaling both factors by c scales the delta by c².
    """
    parts: dict[str, list[tuple[Tensor, Tensor]]] = {}
    for factors, weight in weighted:
        for layer, (down, up) in factors.items():
            parts.setdefault(layer, []).append((down, up * weight))
    return {
        layer: (torch.cat([down for down, _ in pairs]), torch.cat([up for _, up in pairs], dim=1))
        for layer, pairs in parts.items()
    }


def write_diffusers(factors: Factors, folder: str | Path, metadata: dict[str, str] | None) -> Path:
    """Write `pytorch_lora_weights.safetensors` for plain `pipe.load_lora_weights(folder)`."""
    tensors = {}
    for layer, (down, up) in factors.items():
        tensors[f"{layer}.lora_A.weight"] = down
        tensors[f"{layer}.lora_B.weight"] = up
    return _write(tensors, Path(folder) / FILE_NAME, metadata)


def write_kohya(factors: Factors, path: str | Path, metadata: dict[str, str] | None) -> Path:
    """Write the layout of kohya's scripts, which A1111 and ComfyUI read: `lora_unet_...`.

    Layers of a transformer must have their original names (`align.models.lora_names`).
    """
    prefixes = {
        "unet": "lora_unet",
        "transformer": "lora_unet",
        "text_encoder": "lora_te",
        "text_encoder_2": "lora_te2",
        "text_encoder_3": "lora_te3",
    }
    if any(re.match(r"text_encoder_\d\.", layer) for layer in factors):
        prefixes["text_encoder"] = "lora_te1"
    tensors = {}
    for layer, (down, up) in factors.items():
        component, _, name = layer.partition(".")
        if name.startswith("encoder.layers."):  # CLIP's, which some classes of it keep unwrapped
            name = f"text_model.{name}"
        key = f"{prefixes[component]}_{name.replace('.', '_')}"
        tensors[f"{key}.lora_down.weight"] = down
        tensors[f"{key}.lora_up.weight"] = up
        tensors[f"{key}.alpha"] = torch.tensor(float(down.shape[0]))
    return _write(tensors, Path(path), metadata)


def _write(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str] | None) -> Path:
    if not tensors:
        raise ValueError(f"there is no LoRA to write to {path}")
    path.parent.mkdir(parents=True, exist_ok=True)
    plain = {k: v.detach().float().cpu().contiguous() for k, v in tensors.items()}
    with atomic_path(path) as unfinished:
        save_file(plain, unfinished, metadata={"format": "pt"} | (metadata or {}))
    return path


def mix(specs: Sequence[str], folder: str | Path) -> Path:
    """Write the weighted sum of LoRA files in diffusers' layout, `["a=0.3", "b=-0.7"]`."""
    loras, names = [], {}
    for source, weight in map(parse_lora, specs):
        factors = read_factors(source)
        if factors is None:
            raise ValueError(f"{source} is not in diffusers' layout; name the model with --model")
        # One layer of a text encoder has two names, by the release of transformers.
        one = {names.setdefault(k.replace(".text_model.", "."), k): v for k, v in factors.items()}
        loras.append((one, weight))
    return write_diffusers(mix_factors(loras), folder, None)
