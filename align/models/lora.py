"""LoRA in a pipeline: add a trainable one, load frozen ones, save, mix, export, merge.

Adapters are PEFT layers inside the denoiser (and text encoders, where a loaded LoRA has them),
so the pipeline stays a plain diffusers pipeline. Files are `align.models.lora_files`' business.
"""

import re
import warnings
from collections.abc import Iterator, Sequence, Set
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from diffusers.utils.peft_utils import recurse_remove_peft_layers
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import nn

from align.diffusion.denoisers import FAMILIES, denoiser_module, family_of
from align.models.lora_files import Factors, mix_factors, write_diffusers, write_kohya
from align.models.lora_names import to_original
from align.models.lora_sources import (
    check_adapters,
    denoiser_name,
    factors_of,
    lora_layers,
    more_than_factors,
    sum_of,
)

TRAINED, LOADED = "align", "loaded"


def add_lora(
    pipe: Any,
    rank: int = 4,
    alpha: float | None = None,
    targets: Sequence[str] | None = None,
    *,
    start: str | Sequence[str] = (),
) -> list[nn.Parameter]:
    """Add a LoRA to the denoiser and return its parameters: float32, the only trainable ones.

    `alpha` defaults to the rank (a scale of 1), `targets`, ends of layer names or patterns of
    whole ones (`up_blocks.*.attentions.*`), to the family's attention layers. The new LoRA changes
    nothing until it is trained; with `start` (files, folders or Hub ids, =WEIGHT optional) it
    begins as the weighted sum of those, whose layers
    and ranks it takes on where they are more.

    Raises ValueError where no layer fits a target, `start` belongs to another model, or the
    pipeline has an adapter that no LoRA file could hold (a DoRA).
    """
    denoiser, component = denoiser_module(pipe), denoiser_name(pipe)
    if rank < 1:
        raise ValueError(f"the LoRA's rank is {rank}; it must be at least 1")
    check_adapters(pipe)
    unused = tuple(f"{name}." for name in _unused_layers(pipe))  # would get no gradient
    layers = [
        name
        for name in _matching_layers(denoiser, targets or family_of(pipe).lora_targets)
        if not f"{name}.".startswith(unused)
    ]
    if not layers:
        raise ValueError(f"no picture depends on the LoRA's targets, {', '.join(targets or ())}")
    ranks, beginning = dict.fromkeys(layers, rank), sum_of(pipe, start)
    beginning = {
        name: pair
        for name, pair in beginning.items()
        if not f"{name.removeprefix(f'{component}.')}.".startswith(unused)
    }
    for layer, (down, _) in beginning.items():
        name = layer.removeprefix(f"{component}.")
        if name == layer:
            raise ValueError(f"a LoRA with {layer.split('.')[0]} layers cannot be trained further")
        ranks[name] = max(rank, down.shape[0])
    scale = 1.0 if alpha is None else alpha / rank
    _inject(denoiser, ranks, TRAINED, scale)
    _freeze(pipe)
    for layer, (down, up) in beginning.items():
        part = denoiser.get_submodule(layer.removeprefix(f"{component}."))
        part.lora_A[TRAINED].weight.data[: len(down)] = down
        part.lora_B[TRAINED].weight.data[:, : len(down)] = up / scale
    parameters = list(trained_parameters(pipe).values())
    for parameter in parameters:
        parameter.requires_grad_(True)
    return parameters


def _unused_layers(pipe: Any) -> tuple[str, ...]:
    """`Family.unused_layers`; none of a pipeline of no family, such as NAR's."""
    kinds = [FAMILIES[kind.__name__] for kind in type(pipe).__mro__ if kind.__name__ in FAMILIES]
    return kinds[0].unused_layers(pipe) if kinds else ()


def remove_lora(pipe: Any) -> None:
    """Take what `add_lora` added out of the pipeline again; its weights stay as they were."""
    layers = lora_layers(pipe)
    for layer in layers:
        layer.delete_adapter(TRAINED)
    if not any(layer.lora_A for layer in layers):
        _unwrap(denoiser_module(pipe))


def trained_parameters(pipe: Any) -> dict[str, nn.Parameter]:
    """The parameters that `add_lora` made, by name."""
    parameters = denoiser_module(pipe).named_parameters()
    return {name: p for name, p in parameters if f".{TRAINED}." in name}


def load_lora(pipe: Any, loras: str | Sequence[str]) -> None:
    """Add the weighted sum of LoRAs to the pipeline, frozen: files, folders, run folders or
    Hub ids, each with an optional =WEIGHT, in any layout that diffusers reads.

    Raises FileNotFoundError where one is missing, ValueError where it fits another model.
    """
    factors = sum_of(pipe, loras)
    for component in {layer.split(".")[0] for layer in factors}:
        module = getattr(pipe, component)
        prefix = f"{component}."
        mine = {k.removeprefix(prefix): v for k, v in factors.items() if k.startswith(prefix)}
        _inject(module, {name: len(down) for name, (down, _) in mine.items()}, LOADED, 1.0)
        for name, (down, up) in mine.items():
            part = module.get_submodule(name)
            part.lora_A[LOADED].weight.data.copy_(down)
            part.lora_B[LOADED].weight.data.copy_(up)
    _freeze(pipe)


def lora_factors(pipe: Any) -> Factors:
    """All active LoRAs of the pipeline as one, by layer; empty where there is none.

    Raises ValueError where an active adapter is more than two factors, as a DoRA is.
    """
    check_adapters(pipe)
    parts = []
    for component, module in pipe.components.items():
        for name, layer in module.named_modules() if isinstance(module, nn.Module) else ():
            if isinstance(layer, LoraLayer):
                parts += [
                    ({f"{component}.{name}": factors_of(layer, adapter)}, 1.0)
                    for adapter in layer.active_adapters
                    if adapter in layer.lora_A
                ]
    return mix_factors(parts)


def save_lora(pipe: Any, folder: str | Path, metadata: dict[str, str] | None = None) -> Path:
    """Write all active LoRAs as one `pytorch_lora_weights.safetensors`, as diffusers does.

    Plain `pipe.load_lora_weights(folder)` reads it. Raises ValueError where there is no LoRA.
    """
    return write_diffusers(lora_factors(pipe), folder, metadata)


@contextmanager
def lora_disabled(pipe: Any) -> Iterator[None]:
    """The model without the LoRA that `add_lora` made, for as long as the context lasts.

    A LoRA that the pipeline had before stays on. Where the trained one began as another (`start`),
    that is part of it and off as well.
    """
    with _without(pipe, lora_layers(pipe), {TRAINED}):
        yield


@contextmanager
def lora_merged(pipe: Any) -> Iterator[None]:
    """The same model without the cost of its adapters, for as long as the context lasts, by adding
    them to the weights they change; these come back bit for bit.

    Without gradient only. Layers whose weights are packed (quantized), or with an adapter that is
    more than two factors (a DoRA), keep their adapters.
    """
    layers = [x for x in lora_layers(pipe) if x.get_base_layer().weight.is_floating_point()]
    layers = [x for x in layers if not any(more_than_factors(x, a) for a in x.active_adapters)]
    bases = [layer.get_base_layer().weight for layer in layers]
    kept = [weight.data for weight in bases]
    try:
        for layer, weight in zip(layers, bases, strict=True):
            for adapter in layer.active_adapters:
                if adapter in layer.lora_A:
                    delta = layer.get_delta_weight(adapter).detach()
                    weight.data = (weight.data + delta).to(weight.dtype)
        with _without(pipe, layers):
            yield
    finally:
        for weight, data in zip(bases, kept, strict=True):
            weight.data = data


@contextmanager
def _without(pipe: Any, layers: Sequence[Any], adapters: Set[str] | None = None) -> Iterator[None]:
    """These layers without their adapters of these names (None: without any)."""
    trainable = [p for p in denoiser_module(pipe).parameters() if p.requires_grad]
    active = [list(layer.active_adapters) for layer in layers]
    for layer, names in zip(layers, active, strict=True):
        layer.set_adapter([n for n in names if adapters is not None and n not in adapters])
    try:
        yield
    finally:
        for layer, names in zip(layers, active, strict=True):
            layer.set_adapter(names)
        _freeze(pipe)  # setting makes every active adapter trainable
        for parameter in trainable:
            parameter.requires_grad_(True)


def export_lora(
    pipe: Any, loras: str | Sequence[str], path: str | Path, layout: str = "kohya"
) -> Path:
    """Write a LoRA, or the weighted sum of several, in another layout: `kohya` (also A1111's and
    ComfyUI's) or `diffusers`.

    `path` is the file for kohya, the folder for diffusers.
    """
    layouts = {"kohya": write_kohya, "diffusers": write_diffusers}
    if layout not in layouts:
        raise ValueError(f"the format is {layout!r}; it must be one of {', '.join(layouts)}")
    factors = sum_of(pipe, loras)
    if layout == "kohya" and denoiser_name(pipe) == "transformer":
        factors = to_original(factors, pipe.transformer)
    return layouts[layout](factors, path, None)


def merge_lora(pipe: Any) -> None:
    """Add all active LoRAs to the weights they change and remove the adapters."""
    factors = lora_factors(pipe)
    for module in {getattr(pipe, layer.partition(".")[0]) for layer in factors}:
        _unwrap(module)
    for layer, (down, up) in factors.items():
        component, _, name = layer.partition(".")
        weight = getattr(pipe, component).get_submodule(name).weight
        # On the CPU, as MPS has no float64.
        delta = (up.flatten(1).cpu().double() @ down.flatten(1).cpu().double()).view_as(weight)
        weight.data = (weight.data.cpu().double() + delta).to(weight)


def _unwrap(module: Any) -> None:
    """Put the layers that adapters were around back in their places."""
    recurse_remove_peft_layers(module)
    module.__dict__.pop("peft_config", None)  # diffusers' own, where it loaded a LoRA
    module._hf_peft_config_loaded = False


def _matching_layers(denoiser: nn.Module, targets: Sequence[str]) -> list[str]:
    def fits(name: str, target: str) -> bool:
        return f".{name}".endswith(f".{target}") or fnmatchcase(name, target)

    found = []
    for name, module in denoiser.named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d | LoraLayer) and ".lora_" not in name:
            name = name.removesuffix(".base_layer")
            if any(fits(name, target) for target in targets):
                found.append(name)
    for target in targets:
        if not any(fits(name, target) for name in found):
            linear = [n for n, m in denoiser.named_modules() if isinstance(m, nn.Linear)]
            ends = sorted({n.split(".")[-1] for n in linear if ".lora_" not in n})
            raise ValueError(f"no layer is called {target!r}; layer names end in {', '.join(ends)}")
    return list(dict.fromkeys(found))


def _inject(module: Any, ranks: dict[str, int], adapter: str, scale: float) -> None:
    """Put an adapter with these ranks on these layers, beside those that are active."""
    active = {a for m in module.modules() if isinstance(m, LoraLayer) for a in m.active_adapters}
    if adapter in active:
        raise ValueError("the pipeline has such a LoRA already; load it anew to start over")
    patterns = {f"^{re.escape(name)}": rank for name, rank in ranks.items()}
    config = LoraConfig(
        r=max(ranks.values()),
        lora_alpha=max(ranks.values()),
        target_modules="|".join(re.escape(name) for name in ranks),
        rank_pattern=patterns,
        alpha_pattern={pattern: rank * scale for pattern, rank in patterns.items()},
        init_lora_weights="gaussian",
    )
    with warnings.catch_warnings():  # that there is an adapter already, which is meant
        warnings.filterwarnings("ignore", "Already found a `peft_config` attribute")
        inject_adapter_in_model(config, module, adapter_name=adapter)
    module._hf_peft_config_loaded = True  # for diffusers' own unload_lora_weights
    for layer in module.modules():
        if isinstance(layer, LoraLayer):
            layer.set_adapter([a for a in (*sorted(active), adapter) if a in layer.lora_A])
    for name, parameter in module.named_parameters():
        if f".{adapter}." in name and parameter.dtype in (torch.float16, torch.bfloat16):
            parameter.data = parameter.data.float()


def _freeze(pipe: Any) -> None:
    for module in pipe.components.values():
        if isinstance(module, nn.Module):
            module.requires_grad_(False)
