"""LoRAs of files, run folders and the Hub, as factors that fit a pipeline."""

from collections.abc import Sequence
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import nn

from align.denoisers import denoiser_module
from align.lora_files import Factors, find_lora, mix_factors, parse_lora, read_factors, read_tensors
from align.lora_names import read_original

READING = "reading"


def sum_of(pipe: Any, loras: str | Sequence[str]) -> Factors:
    """The weighted sum of LoRAs, each checked against the pipeline."""
    parts = []
    for source, weight in map(parse_lora, [loras] if isinstance(loras, str) else loras):
        factors = read_factors(source)
        if factors is None and denoiser_name(pipe) == "transformer":
            factors = read_original(read_tensors(find_lora(source))[0], pipe.transformer)
        if factors is None:
            factors = _read_through_diffusers(pipe, source)
        _check_fit(pipe, source, factors)
        parts.append((factors, weight))
    return mix_factors(parts)


def _read_through_diffusers(pipe: Any, source: str) -> Factors:
    """The LoRA of a file in one of the layouts that diffusers converts (kohya's and others).

    diffusers can only load it into a pipeline: so it does, and what it put there is taken out.
    """
    path = find_lora(source)
    if not hasattr(pipe, "load_lora_weights"):
        raise ValueError(
            f"{path} is no LoRA of a {type(pipe).__name__}, or in a layout that cannot be read; "
            "diffusers' and kohya's can"
        )
    tensors, _ = read_tensors(path)
    if any("dora_scale" in key or "magnitude" in key for key in tensors):
        raise ValueError(f"{path} is a DoRA, which has no factors to mix; merge it elsewhere")
    active = [(layer, list(layer.active_adapters)) for layer in lora_layers(pipe)]
    # A safetensors file keeps its metadata when diffusers opens it; a pickle is safe as read here.
    given = str(path) if path.suffix == ".safetensors" else tensors
    try:
        pipe.load_lora_weights(given, adapter_name=READING)
    except Exception as error:  # anything from KeyError to RuntimeError
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(f"{path} is no LoRA of a {type(pipe).__name__} ({reason})") from error
    factors = {
        f"{component}.{name}": factors_of(layer, READING)
        for component, module in pipe.components.items()
        for name, layer in (module.named_modules() if isinstance(module, nn.Module) else ())
        if isinstance(layer, LoraLayer) and READING in layer.lora_A
    }
    if active:
        pipe.delete_adapters(READING)
        for layer, adapters in active:
            layer.set_adapter(adapters)
    else:
        pipe.unload_lora_weights()
    return {layer: (down.float(), up.float()) for layer, (down, up) in factors.items()}


def _check_fit(pipe: Any, source: str, factors: Factors) -> None:
    """Raise ValueError where a LoRA changes layers that the pipeline has not, or not like that."""
    if not factors:
        raise ValueError(f"{source} holds no LoRA layer of a {type(pipe).__name__}")
    for layer, (down, up) in factors.items():
        component, _, name = layer.partition(".")
        try:
            weight = pipe.components[component].get_submodule(name).weight
        except (KeyError, AttributeError):
            raise ValueError(
                f"{source} is a LoRA of another model: it changes {layer}, which this "
                f"{type(pipe).__name__} has not"
            ) from None
        if (weight.shape[0], weight.shape[1]) != (up.shape[0], down.shape[1]):
            raise ValueError(
                f"{source} is a LoRA of another model: it changes {layer} from {down.shape[1]} to "
                f"{up.shape[0]} features, here it is {weight.shape[1]} to {weight.shape[0]}"
            )


def denoiser_name(pipe: Any) -> str:
    """What diffusers calls the denoiser."""
    return "unet" if "unet" in pipe.components else "transformer"


def lora_layers(pipe: Any) -> list[Any]:
    """The denoiser's layers that have adapters."""
    return [module for module in denoiser_module(pipe).modules() if isinstance(module, LoraLayer)]


def factors_of(layer: Any, adapter: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Down [rank, in ...] and up [out, rank ...] of a layer's adapter, its scale in the latter."""
    down, up = layer.lora_A[adapter].weight, layer.lora_B[adapter].weight
    return down.detach(), up.detach() * layer.scaling[adapter]
