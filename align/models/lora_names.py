"""LoRA layers of transformers under their original names, as kohya's scripts and ComfyUI have them.

A kohya key is `lora_unet_` and the layer's name in the model's original code, dots as underscores.
UNets need no table: there the same tools also take diffusers' names. Originals stack some layers
(queries, keys and values) into one; a stacked LoRA has the parts' `down` factors one below the
other and a block-diagonal `up`, which says exactly the same.
"""

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from align.diffusion.denoisers import FAMILIES
from align.models.lora_files import Factors

COMPONENT = "transformer"


def tables() -> dict[str, Mapping[str, str]]:
    """`Family.original_layers` by the class of the transformer, of families that have them."""
    known = [family for family in FAMILIES.values() if family.original_layers is not None]
    return {family.transformer: family.original_layers or {} for family in known}


def original_layers(transformer: Any) -> dict[str, tuple[str, ...]]:
    """Original layer names of a diffusers transformer, each with the layers stacked in it.

    Raises ValueError for a transformer without a table.
    """
    kind = type(transformer).__name__
    known = tables()
    if kind not in known:
        raise ValueError(f"kohya's layout has no names for a {kind}; known: {', '.join(known)}")
    there, table = {name for name, _ in transformer.named_modules()}, known[kind]
    if not table:
        plain = (n for n in there if hasattr(transformer.get_submodule(n), "weight"))
        return {name: (name,) for name in plain if not re.search(r"\.(lora_|base_layer)", name)}
    found = {}
    for original, written in table.items():
        blocks, counted, _ = written.partition(".0.")
        numbers = ["0"]
        if counted:
            below = {name.rpartition(".")[::2] for name in there}
            numbers = sorted((n for b, n in below if b == blocks and n.isdigit()), key=int)
        for number in numbers:
            parts = _parts(written.replace(".0.", f".{number}.", 1))
            if all(part in there for part in parts):
                found[original.replace(".0.", f".{number}.", 1) if counted else original] = parts
    return found


def _parts(written: str) -> tuple[str, ...]:
    """("a.b.to_q", "a.b.to_k", "a.proj") of "a.b.to_q to_k .proj"."""
    first, *others = written.split(" ")
    parent, parts = first.rpartition(".")[0], [first]
    for other in others:
        above = parent.rpartition(".")[0] if other.startswith(".") else parent
        parts.append(f"{above}.{other.lstrip('.')}")
    return tuple(parts)


def to_original(factors: Factors, transformer: Any) -> Factors:
    """A LoRA with the transformer's layers under original names, stacked as there.

    Raises ValueError naming a layer that has no original name.
    """
    prefix = f"{COMPONENT}."
    left = {k.removeprefix(prefix): v for k, v in factors.items() if k.startswith(prefix)}
    renamed = {k: v for k, v in factors.items() if not k.startswith(prefix)}
    for original, parts in original_layers(transformer).items():
        if any(part in left for part in parts):
            pairs = [left.pop(part, None) for part in parts]
            renamed[prefix + original] = _stack(pairs, parts, transformer)
    if left:
        raise ValueError(f"kohya's layout has no name for {next(iter(left))}; export without it")
    return renamed


def _stack(
    pairs: list[tuple[Tensor, Tensor] | None], parts: tuple[str, ...], transformer: Any
) -> tuple[Tensor, Tensor]:
    if len(pairs) == 1 and pairs[0] is not None:
        return pairs[0]
    rows = [transformer.get_submodule(part).weight.shape[0] for part in parts]
    down = torch.cat([pair[0] for pair in pairs if pair is not None])
    up, row, column = down.new_zeros(sum(rows), len(down)), 0, 0
    for pair, height in zip(pairs, rows, strict=True):
        if pair is not None:
            width = len(pair[0])
            up[row : row + height, column : column + width] = pair[1]
            column += width
        row += height
    return down, up


def reversed_layers(denoiser: Any) -> dict[str, str]:
    """Layers whose two halves (shift, then scale) diffusers has the other way round, with their
    original names: read, but never written."""
    kind, found = type(denoiser).__name__, {}
    if kind not in ("FluxTransformer2DModel", "SD3Transformer2DModel", "Flux2Transformer2DModel"):
        return found
    for name, module in denoiser.named_modules():
        if type(module).__name__ == "AdaLayerNormContinuous":
            block = re.fullmatch(r"transformer_blocks\.(\d+)\.norm1_context", name)
            place = f"joint_blocks.{block[1]}.context_block" if block else "final_layer"
            found[f"{name}.linear"] = f"{place}.adaLN_modulation.1"
    return found


def context_modulations(transformer: Any) -> dict[str, tuple[str, ...]]:
    """SD3's modulations of the prompt by their original names, where the rows are the same."""
    return {
        f"joint_blocks.{name.split('.')[1]}.context_block.adaLN_modulation.1": (f"{name}.linear",)
        for name, module in transformer.named_modules()
        if re.fullmatch(r"transformer_blocks\.\d+\.norm1_context", name)
        and type(module).__name__ == "AdaLayerNormZero"
    }
