"""LoRAs of files, run folders and the Hub, as factors that fit a pipeline."""

import re
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from align.diffusion.denoisers import denoiser_module
from align.models.lora_files import (
    Factors,
    check_kind,
    find_lora,
    lora_settings,
    mix_factors,
    parse_lora,
    read_tensors,
    scale_of,
    some,
)
from align.models.lora_keys import read_named

READING = "reading"
_DOWN = re.compile(r"(lora_down|lora_A|\.down)(\.\w+)?\.weight$")


def sum_of(pipe: Any, loras: str | Sequence[str]) -> Factors:
    """The weighted sum of LoRAs, each checked against the pipeline.

    Raises ValueError for one of another model, in a form that is no sum of weight deltas, with
    keys that no layer goes with, or with values that are not finite.
    """
    parts = []
    for source, weight in map(parse_lora, [loras] if isinstance(loras, str) else loras):
        path = find_lora(source)
        tensors, metadata = read_tensors(path)
        check_kind(path, tensors)
        settings = lora_settings(path, metadata, denoiser_name(pipe))
        factors, unknown = read_named(pipe, path, tensors, partial(scale_of, settings))
        other = "unet" if denoiser_name(pipe) == "transformer" else "transformer"
        if tensors and all(key.startswith(f"{other}.") for key in tensors):
            raise ValueError(
                f"{source} is a LoRA of another model: it changes {other}.…, which this "
                f"{type(pipe).__name__} has not"
            )
        if len(unknown) == len(tensors):
            factors = _read_through_diffusers(pipe, path, tensors)
        elif unknown:
            raise ValueError(
                f"{path} has {len(unknown)} of {len(tensors)} keys that fit no layer of a "
                f"{type(pipe).__name__}, or are in a form that cannot be read: {some(unknown)}"
            )
        parts.append((_fitting(pipe, source, factors), weight))
    return mix_factors(parts)


def _read_through_diffusers(pipe: Any, path: Path, tensors: dict[str, Tensor]) -> Factors:
    """The LoRA of a file under names that diffusers alone knows (XLabs', and others).

    diffusers can only load it into a pipeline: so it does, and what it put there is taken out.
    """
    refusal = ValueError(
        f"{path} is no LoRA of a {type(pipe).__name__}, or in a layout that cannot be read; "
        f"its keys are {some(list(tensors))}"
    )
    if not hasattr(pipe, "load_lora_weights"):
        raise refusal
    active = [(layer, list(layer.active_adapters)) for layer in lora_layers(pipe)]
    # A safetensors file keeps its metadata when diffusers opens it; a pickle is safe as read here.
    given = str(path) if path.suffix == ".safetensors" else dict(tensors)
    try:
        pipe.load_lora_weights(given, adapter_name=READING)
        found = {
            f"{component}.{name}": factors_of(layer, READING)
            for component, module in pipe.components.items()
            for name, layer in (module.named_modules() if isinstance(module, nn.Module) else ())
            if isinstance(layer, LoraLayer) and READING in layer.lora_A
        }
    except Exception as error:  # anything from KeyError to RuntimeError
        raise refusal from error
    finally:
        _take_out(pipe, active)
    if not found or any(factor.is_meta for pair in found.values() for factor in pair):
        raise refusal
    factors = {layer: (down.float(), up.float()) for layer, (down, up) in found.items()}
    pairs = len([key for key in tensors if _DOWN.search(key)])
    if not 0 < pairs <= len(factors):
        raise ValueError(
            f"{path} has layers that cannot be read for a {type(pipe).__name__}: of {pairs} in it "
            f"{len(factors)} were found; its keys are {some(list(tensors))}"
        )
    return factors


def _take_out(pipe: Any, active: list[tuple[Any, list[str]]]) -> None:
    """Leave the pipeline with the adapters that were active, and no others."""
    if active:
        with suppress(ValueError):  # where nothing came to be loaded
            pipe.delete_adapters(READING)
        for layer, adapters in active:
            layer.set_adapter(adapters)
    else:
        pipe.unload_lora_weights()


def _fitting(pipe: Any, source: str, factors: Factors) -> Factors:
    """The factors in the shapes of the layers' weights. Raises ValueError where a LoRA changes
    layers that the pipeline has not, or not like that, or to what is not finite."""
    fitting = {}
    for layer, (down, up) in factors.items():
        component, _, name = layer.partition(".")
        try:
            weight = pipe.components[component].get_submodule(name).weight
        except (KeyError, AttributeError):
            raise ValueError(
                f"{source} is a LoRA of another model: it changes {layer}, which this "
                f"{type(pipe).__name__} has not"
            ) from None
        if (len(weight), weight[0].numel()) != (len(up), down[0].numel()):
            raise ValueError(
                f"{source} is a LoRA of another model: it changes {layer} from {down.shape[1]} to "
                f"{up.shape[0]} features, here it is {weight.shape[1]} to {weight.shape[0]}"
            )
        if not (down.isfinite().all() and up.isfinite().all()):
            raise ValueError(f"{source} has values that are not finite, in {layer}; it is damaged")
        down = down.reshape(len(down), *weight.shape[1:])
        fitting[layer] = down, up.reshape(len(up), len(down), *[1] * (weight.ndim - 2))
    return fitting


def denoiser_name(pipe: Any) -> str:
    """What diffusers calls the denoiser."""
    return "unet" if "unet" in pipe.components else "transformer"


def lora_layers(pipe: Any) -> list[Any]:
    """The denoiser's layers that have adapters."""
    return [module for module in denoiser_module(pipe).modules() if isinstance(module, LoraLayer)]


def check_adapters(pipe: Any) -> None:
    """Raise ValueError where a pipeline has an active adapter that is more than two factors."""
    for component, module in pipe.components.items():
        for name, layer in module.named_modules() if isinstance(module, nn.Module) else ():
            if not isinstance(layer, BaseTunerLayer):
                continue
            for adapter in layer.active_adapters:
                if fault := more_than_factors(layer, adapter):
                    raise ValueError(
                        f"the pipeline's adapter {adapter!r} is {fault} (on {component}.{name}), "
                        "which two factors do not hold; merge it into the weights first, as by "
                        "pipe.fuse_lora() and pipe.unload_lora_weights()"
                    )


def more_than_factors(layer: Any, adapter: str) -> str | None:
    """What kind of adapter a layer has, where it is no plain LoRA."""
    if not isinstance(layer, LoraLayer):
        here = any(adapter in getattr(layer, name, ()) for name in layer.adapter_layer_names)
        return f"a {type(layer).__module__.split('.')[-2]} layer" if here else None
    if adapter in layer.lora_embedding_A:
        return "a LoRA of an embedding"
    if adapter not in layer.lora_A:
        return None
    if adapter in layer.lora_variant:
        variant = type(layer.lora_variant[adapter]).__name__
        return "a DoRA" if "dora" in variant.lower() else f"a LoRA of the kind {variant}"
    return "a LoRA with a bias" if layer.lora_bias.get(adapter) else None


def factors_of(layer: Any, adapter: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Down [rank, in ...] and up [out, rank ...] of a layer's adapter, its scale in the latter."""
    down, up = layer.lora_A[adapter].weight, layer.lora_B[adapter].weight
    return down.detach(), up.detach() * layer.scaling[adapter]
