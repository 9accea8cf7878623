"""`decode`: latents to images, the one place that produces values in [0, 1]; and `encode`."""

import copy
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.checkpoint import checkpoint as recompute

from align.diffusion.denoisers import family_of


class _Clamp01(torch.autograd.Function):
    """Clamp to [0, 1]; the gradient passes wherever descent would move a pixel back inside.

    A plain clamp gives overexposed pixels no gradient, so they could never return.
    """

    @staticmethod
    def forward(ctx: Any, pixels: Tensor) -> Tensor:
        ctx.save_for_backward(pixels)
        return pixels.clamp(0, 1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (pixels,), (grad,) = ctx.saved_tensors, grads
        outward = ((pixels > 1) & (grad < 0)) | ((pixels < 0) & (grad > 0))
        return grad.masked_fill(outward, 0)


def clamp01(pixels: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Clamp to [0, 1] with a gradient that lets pixels return from outside.

    The gradient is taken to be that of a loss to be *minimized*: it moves a pixel by minus the
    gradient, so above 1 a positive gradient passes and a negative one is zeroed, below 0 the
    other way round. To raise a score, call backward on its negative.
    """
    return _Clamp01.apply(pixels)  # pyright: ignore[reportReturnType]


def decode(
    pipe: Any, latents: Float[Tensor, "b c *f h w"], *, checkpointing: bool = False
) -> Float[Tensor, "b *t 3 height width"]:
    """Images in [0, 1] of latents as `sample` returns them, float32 (float64 stays).

    Clamped by `clamp01`, whose gradient is meant for a loss to be minimized; an overflow of the
    decoder becomes NaN. `checkpointing` recomputes the decoder in the backward pass.
    """
    vae = pipe.vae
    if vae.dtype == torch.float16 and vae.config.get("force_upcast", False):
        # SDXL's decoder overflows in float16. A copy, as casting in place would break both the
        # graph and the pipeline's own __call__.
        vae = copy.deepcopy(vae).float()
    latents, own = latents.to(vae.dtype), family_of(pipe).decode

    def decode_latents(latents: Tensor) -> Tensor:
        if own is not None:
            return own(vae, latents)
        return vae.decode(unscale(vae.config, latents), return_dict=False)[0]

    if checkpointing and torch.is_grad_enabled() and not vae.is_gradient_checkpointing:
        pixels = recompute(decode_latents, latents, use_reentrant=False)
    else:
        pixels = decode_latents(latents)
    if pixels.dtype in (torch.float16, torch.bfloat16):
        pixels = pixels.float()
    # Clamped, an overflow would look like white or black.
    pixels = pixels.masked_fill(pixels.isinf(), float("nan"))
    return clamp01(pixels / 2 + 0.5)


@torch.no_grad()
def encode(pipe: Any, images: Float[Tensor, "b 3 height width"]) -> Float[Tensor, "b c h w"]:
    """Latents as `sample` returns them, of images in [0, 1]: the mode of the encoder's posterior.

    Raises ValueError for a family whose latents are not its autoencoder's own.
    """
    vae, family = pipe.vae, family_of(pipe)
    if family.decode is not None or "scaling_factor" not in vae.config:
        raise ValueError(
            f"pictures cannot be encoded for {family.name} yet: its latents are packed"
        )
    if vae.dtype == torch.float16 and vae.config.get("force_upcast", False):
        vae = copy.deepcopy(vae).float()  # as in `decode`
    pixels = (2 * images - 1).to(vae.device, vae.dtype)
    encoded = vae.encode(pixels, return_dict=False)[0]
    # DC-AE, of SANA, has no posterior
    latents = encoded.mode() if hasattr(encoded, "mode") else encoded
    nothing = torch.zeros_like(latents)
    shift = unscale(vae.config, nothing)  # affine, channel by channel
    factor = unscale(vae.config, nothing + 1) - shift
    return (latents - shift) / factor


def unscale(config: Any, latents: Tensor) -> Tensor:
    """Undo the scaling, and shift or normalization, that the VAE's config describes."""
    mean, std = config.get("latents_mean"), config.get("latents_std")
    if mean is not None and std is not None:
        shape = (1, -1, 1, 1)
        mean = torch.tensor(mean).view(shape).to(latents)
        std = torch.tensor(std).view(shape).to(latents)
        return latents * std / config.scaling_factor + mean
    return latents / config.scaling_factor + (config.get("shift_factor") or 0.0)
