"""Pictures that are not finite are not drawn: which part made them so is said instead."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn


def check_finite(
    pipe: Any, latents: Float[Tensor, "b c *f h w"], images: Float[Tensor, "b *t 3 height width"]
) -> None:
    """Raise ValueError, in one sentence, where pictures have values that are not finite."""
    if images.isfinite().all():
        return
    for component, module in pipe.components.items():
        for name, parameter in module.named_parameters() if isinstance(module, nn.Module) else ():
            if not parameter.isfinite().all():
                raise ValueError(
                    f"the pictures are not finite, as {component}.{name} of the model has values "
                    "that are not; its file, or a LoRA's, is damaged"
                )
    decoded = bool(latents.isfinite().all())
    part = pipe.vae if decoded else _denoiser(pipe)
    what = "the autoencoder" if decoded else "the denoiser"
    way = "" if part.dtype == torch.float32 else "; float32 may hold them, bfloat16 too"
    raise ValueError(f"the pictures are not finite: {what} overflows in {_short(part.dtype)}{way}")


def overflow_hint(pipe: Any) -> str:
    """What a training adds to "the images are not finite", where a part may be too small for
    them; an empty string elsewhere."""
    parts = {"the denoiser": _denoiser(pipe), "the autoencoder": pipe.components.get("vae")}
    half = [name for name, part in parts.items() if getattr(part, "dtype", None) == torch.float16]
    if not half:
        return ""
    few = "is" if len(half) == 1 else "are"
    return f"; {' and '.join(half)} {few} in float16, which may overflow: float32 holds more"


def _denoiser(pipe: Any) -> Any:
    return pipe.components.get("unet") or pipe.components["transformer"]


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
