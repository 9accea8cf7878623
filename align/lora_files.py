"""LoRA files: reading what people have, writing diffusers' and kohya's layouts, mixing deltas.

In memory a LoRA is `{"unet.down_blocks...to_q": (down, up)}`: the component and path of a layer
and two factors whose product `up @ down` is what is added to its weight. Every scale (alpha,
rank, weight) is folded into `up`, so factors can be compared, added and written anywhere.
"""

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download, list_repo_files
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from align.run import atomic_path

Factors = dict[str, tuple[Tensor, Tensor]]
FILE_NAME = "pytorch_lora_weights.safetensors"
PICKLES = (".pt", ".pth", ".bin", ".ckpt")
_FACTOR = re.compile(r"((?:unet|transformer|text_encoder\w*)\..+)\.(lora_A|lora_B)\.weight")


def parse_lora(spec: str) -> tuple[str, float]:
    """("runs/a/lora", 0.5) of "runs/a/lora=0.5"; the weight is 1 where none is given."""
    source, equals, weight = spec.rpartition("=")
    if not equals:
        return spec, 1.0
    try:
        return source, float(weight)
    except ValueError:
        raise ValueError(f"{spec!r} ends in {weight!r}; a LoRA's weight is a number") from None


def find_lora(source: str) -> Path:
    """The LoRA file that a file, a folder, a run's folder or a Hub id stands for.

    Raises FileNotFoundError where there is none.
    """
    path = Path(source).expanduser()
    if path.is_file():
        return path
    if path.is_dir():
        for candidate in (path / FILE_NAME, path / "lora" / FILE_NAME):
            if candidate.is_file():
                return candidate
        files = sorted(path.glob("*.safetensors"))
        if len(files) != 1:
            raise FileNotFoundError(f"{path} holds no {FILE_NAME} and no lora/{FILE_NAME}")
        return files[0]
    if source.count("/") not in (1, 2) or source.startswith((".", "/", "~")):
        raise FileNotFoundError(
            f"there is no LoRA {source!r}; allowed: a file, a folder, a run's folder, or a Hub id"
        )
    return _find_on_hub(source)


def _find_on_hub(source: str) -> Path:
    owner, name, *file = source.split("/")
    try:
        if not file:
            names = list_repo_files(f"{owner}/{name}")
            file = [n for n in names if n == FILE_NAME] or [
                n for n in names if n.endswith(".safetensors")
            ]
        if len(file) != 1:
            raise FileNotFoundError(
                f"{source} holds {len(file)} safetensors files; name one, as {source}/FILE"
            )
        return Path(hf_hub_download(f"{owner}/{name}", file[0]))
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        if type(error) is FileNotFoundError:
            raise
        raise FileNotFoundError(
            f"the LoRA {source} is no local path and could not be loaded from the Hub "
            f"({str(error).splitlines()[0]})"
        ) from error


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and the metadata of a safetensors file, or of a pickle of plain tensors."""
    try:
        if path.suffix in PICKLES:
            return torch.load(path, map_location="cpu", weights_only=True), {}
        with safe_open(path, "pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (SafetensorError, RuntimeError, EOFError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as weights ({error})") from error
    except Exception as error:  # pickle.UnpicklingError and what a broken pickle raises
        raise ValueError(f"{path} holds more than plain tensors; convert it first") from error


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
    settings = json.loads(metadata.get("lora_adapter_metadata") or "{}")
    return {
        layer: (down.float(), up.float() * _scale(settings, layer, down.shape[0]))
        for layer, (down, up) in factors.items()
    }


def _scale(settings: dict[str, Any], layer: str, rank: int) -> float:
    """alpha / rank of a layer by diffusers' metadata, where an absent alpha is the rank."""
    component, _, path = layer.partition(".")
    alpha = settings.get(f"{component}.lora_alpha")
    for pattern, value in (settings.get(f"{component}.alpha_pattern") or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", path):
            alpha = value
    if alpha is None:
        return 1.0
    return alpha / (rank**0.5 if settings.get(f"{component}.use_rslora") else rank)


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

    Layers of a transformer must have their original names (`align.lora_names`).
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
    loras = []
    for source, weight in map(parse_lora, specs):
        factors = read_factors(source)
        if factors is None:
            raise ValueError(f"{source} is not in diffusers' layout; name the model with --model")
        loras.append((factors, weight))
    return write_diffusers(mix_factors(loras), folder, None)
