"""A frozen denoiser in 8 or 4 bits, by bitsandbytes; the LoRA on it stays float32."""

import importlib.util
from pathlib import Path
from typing import Any

import diffusers
import torch

from align.models.hub import reach


def check_quantize(quantize: str, device: torch.device) -> None:
    """Raise ValueError where bitsandbytes cannot run."""
    if device.type != "cuda":
        raise ValueError(
            f"quantize is {quantize!r}, which needs a CUDA device, and the model is on "
            f"{device.type}; leave it out"
        )
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ValueError(
            f"quantize is {quantize!r}, which needs bitsandbytes: pip install "
            "align-diffusion[quantize]"
        )


def quantized_denoiser(
    source: Path | str,
    index: dict[str, Any],
    quantize: str,
    dtype: torch.dtype,
    variant: str | None = None,
) -> dict[str, Any]:
    """{"unet" or "transformer": the denoiser with linear layers in 8bit or 4bit (NF4)}."""
    name = "unet" if "unet" in index else "transformer"
    kind = getattr(diffusers, index[name][1])
    bits: dict[str, Any] = {"load_in_8bit": True}
    if quantize == "4bit":
        bits = {
            "load_in_4bit": True,
            "bnb_4bit_quant_type": "nf4",
            "bnb_4bit_compute_dtype": dtype,
        }
    config = diffusers.BitsAndBytesConfig(**bits)
    load = kind.from_pretrained
    settings: dict[str, Any] = {"subfolder": name, "quantization_config": config, "dtype": dtype}
    settings["variant"] = variant
    return {name: reach(source, load, source, **settings)}
