"""Keys of LoRA files: which layer of a pipeline each means, in the layouts that tools write.

diffusers' (of any age), kohya's, LyCORIS', PEFT's and ComfyUI's, with the layers under diffusers'
or their original names. What a key means is decided here; what the numbers mean, in
`align.models.lora_deltas`.
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from align.models.lora_deltas import factors as factors_of_pieces
from align.models.lora_files import Factors
from align.models.lora_names import context_modulations, original_layers, reversed_layers, tables
from align.models.unet_names import original_name

Layers = tuple[str, ...]
# The component that a key's beginning stands for; None: the one found so far, first the denoiser.
PREFIXES = {
    "lora_te_": "text_encoder",
    "lora_te1_": "text_encoder",
    "lora_te2_": "text_encoder_2",
    "lora_te3_": "text_encoder_3",
    "text_encoder.": "text_encoder",
    "text_encoder_2.": "text_encoder_2",
    "text_encoder_3.": "text_encoder_3",
    "unet.": "unet",
    "transformer.": "transformer",
} | dict.fromkeys(
    (
        "lora_unet_",
        "lora_transformer_",
        "lycoris_",
        "model.diffusion_model.",
        "diffusion_model.",
        "base_model.model.",
        "module.",
    )
)
_PAIR = re.compile(
    r"(?P<layer>.+?)(?:\.(?P<end>lora_(?:down|up|mid|A|B))|"
    r"(?:\.lora|\.lora_linear_layer|_lora)\.(?P<old>down|up))(?:\.(?!weight$)[\w-]+)?\.weight"
)
_WHOLE = re.compile(
    r"(?P<layer>.+?)(?:\.lora|\.lora_linear_layer|_lora)?\."
    r"(?P<end>alpha|hada_w[12]_[ab]|hada_t[12]|lokr_w[12](?:_[ab])?|lokr_t2|diff)"
    r"(?:\.(?!weight$)[\w-]+)?"
)
_ENDS = {"lora_A": "lora_down", "lora_B": "lora_up", "down": "lora_down", "up": "lora_up"}
# Attention of transformers' CLIP, under the names that diffusers' first LoRAs gave it.
_OLD_CLIP = {"q_proj": "to_q", "k_proj": "to_k", "v_proj": "to_v", "out_proj": "to_out"}


def read_named(
    pipe: Any,
    path: Path,
    tensors: dict[str, Tensor],
    scale: Callable[[str], tuple[float | None, int | None, bool]],
) -> tuple[Factors, list[str]]:
    """(the LoRA of a file, the keys that no layer or no known form goes with).

    `scale(layer)` is (alpha, rank, whether its root divides alpha) where the keys do
    not say. Raises ValueError for a layer that is incomplete, or there twice.
    """
    tables = _tables(pipe)
    denoiser = "unet" if "unet" in pipe.components else "transformer"
    found: dict[Layers, dict[str, Tensor]] = {}
    names, unknown = {}, []
    for key, value in tensors.items():
        match = _PAIR.fullmatch(key) or _WHOLE.fullmatch(key)
        layers = _find(match["layer"].replace(".processor", ""), tables, denoiser) if match else ()
        if match is None or not layers:
            unknown.append(key)
            continue
        end = match["end"] or match["old"]
        end = _ENDS.get(end, end)
        if end in found.setdefault(layers, {}):
            raise ValueError(f"{path} has two values for one layer, as {names[layers]} and {key}")
        found[layers][end] = value
        names[layers] = key
    factors: Factors = {}
    for layers, pieces in found.items():
        try:
            pair = factors_of_pieces(pieces, *scale(layers[0]))
        except KeyError as error:
            raise ValueError(f"{path} is incomplete: {names[layers]} lacks {error}") from None
        except (ValueError, RuntimeError) as error:
            raise ValueError(f"{path} cannot be read at {names[layers]}: {error}") from error
        factors |= _split(pipe, path, layers, *pair)
    return factors, unknown


def _split(pipe: Any, path: Path, layers: Layers, down: Tensor, up: Tensor) -> Factors:
    """The factors of each of the layers that a file's one stacks along its output."""
    rows = []
    for layer in layers:
        component, _, name = layer.partition(".")
        rows.append(len(pipe.components[component].get_submodule(name).weight))
    component, _, name = layers[0].partition(".")
    if name in reversed_layers(pipe.components[component]):
        shift, scale = up.chunk(2)
        up = torch.cat([scale, shift])
    if len(layers) == 1:
        return {layers[0]: (down, up)}
    if sum(rows) != len(up):
        raise ValueError(
            f"{path} is a LoRA of another model: it changes {layers[0]} and what is stacked "
            f"with it to {len(up)} features, here it is {sum(rows)}"
        )
    factors = {}
    for layer, rise in zip(layers, up.split(rows), strict=True):
        used = rise.flatten(1).abs().sum(0) > 0  # of a block-diagonal factor, the layer's own block
        if used.any():
            factors[layer] = (down[used], rise[:, used])
    return factors


def _find(layer: str, tables: dict[str, dict[str, Layers]], component: str) -> Layers:
    table = tables.get(component, {})
    for name in (layer, f"{layer}.0"):  # `to_out` of old files is `to_out.0`
        if found := table.get(name.replace(".", "_")):
            return found
    for prefix, named in PREFIXES.items():
        if layer.startswith(prefix):
            return _find(layer.removeprefix(prefix), tables, named or component)
    return ()


def _tables(pipe: Any) -> dict[str, dict[str, Layers]]:
    """By component: the layers of every name, dots as underscores."""
    tables = {}
    for component, module in pipe.components.items():
        if component in ("unet", "transformer"):
            tables[component] = _denoiser_table(component, module)
        elif component.startswith("text_encoder") and isinstance(module, nn.Module):
            tables[component] = _encoder_table(component, module)
    tables.setdefault("text_encoder_3", tables.get("text_encoder_2", {}))  # FLUX has T5 as its 2nd
    return tables


def _denoiser_table(component: str, module: Any) -> dict[str, Layers]:
    own = {name: name for name in _layers(module)}
    table = {}
    if type(module).__name__ == "UNet2DConditionModel":
        table = {original: (name,) for name in own if (original := original_name(name, module))}
    elif type(module).__name__ in tables():
        table = original_layers(module) | context_modulations(module)
        table |= {original: (name,) for name, original in reversed_layers(module).items()}
    named = {name: (name,) for name in own} | table
    return {
        name.replace(".", "_"): tuple(f"{component}.{layer}" for layer in layers)
        for name, layers in named.items()
    }


def _encoder_table(component: str, module: Any) -> dict[str, Layers]:
    """A text encoder's: some of transformers' releases have CLIP wrapped in a `text_model`."""
    table = {}
    for layer in _layers(module):
        inside = layer.removeprefix("text_model.")
        last = inside.rpartition(".")[2]
        old = inside.removesuffix(last) + _OLD_CLIP.get(last, last)
        for name in (inside, f"text_model.{inside}", old, f"text_model.{old}"):
            table[name.replace(".", "_")] = (f"{component}.{layer}",)
    return table


def _layers(module: Any) -> list[str]:
    return [
        name
        for name, part in module.named_modules()
        if isinstance(getattr(part, "weight", None), Tensor) and not name.endswith(".base_layer")
    ]
