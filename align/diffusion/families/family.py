"""What a family of pipelines has to say about itself."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

Embeds = dict[str, Tensor]  # batch-first; the unconditional ones are named "negative_..."
Forward = Callable[[Tensor, Tensor, Embeds], Tensor]  # (latents, timestep, embeds) -> output
ATTENTION_LAYERS = ("to_q", "to_k", "to_v", "to_out.0")


def call_default(pipe: Any, name: str) -> Any:
    """The default of an argument of the pipeline's own `__call__`; None where it has none."""
    parameter = inspect.signature(type(pipe).__call__).parameters.get(name)
    return None if parameter is None or parameter.default is parameter.empty else parameter.default


def denoiser_module(pipe: Any) -> Any:
    """The pipeline's UNet or transformer."""
    return pipe.unet if "unet" in pipe.components else pipe.transformer


def set_timesteps(
    pipe: Any,
    scheduler: Any,
    num_inference_steps: int,
    device: torch.device,
    latent_size: tuple[int, int],
) -> Tensor:
    """Prepare the scheduler for a run and return the timesteps to visit."""
    scheduler.set_timesteps(num_inference_steps, device=device)
    return scheduler.timesteps


def default_size(pipe: Any) -> tuple[int, int]:
    """The pipeline's own (height, width) in pixels, from its denoiser's `sample_size`."""
    size, factor = denoiser_module(pipe).config.sample_size, pipe.vae_scale_factor
    high, wide = (size, size) if isinstance(size, int) else size
    return high * factor, wide * factor


def image_shift(scheduler: Any, latent_size: tuple[int, int], max_shift: float) -> float:
    """The flow schedule's shift `mu`, linear in the number of 2x2 patches of the latents.

    Stable Diffusion 3 (2403.03206, section 5.3.2) and FLUX: larger pictures need more noise.
    """
    config = scheduler.config
    patches = (latent_size[0] // 2) * (latent_size[1] // 2)
    few, many = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
    low, high = config.get("base_shift", 0.5), config.get("max_shift", max_shift)
    return low + (high - low) * (patches - few) / (many - few)


def is_distilled(pipe: Any, mark: str) -> bool:
    """Whether the model was distilled to one step, which its name tells by `Family.distilled`:
    SD-Turbo, SDXL-Turbo, the embedded turbo model, PixArt-DMD."""
    name = Path(str(pipe.config.get("_name_or_path", ""))).name.lower()
    return bool(mark) and mark in name


@dataclass(frozen=True)
class Family:
    """The differences between pipelines; everything else is shared.

    `encode(pipe, prompts, negative_prompts, guided, max_sequence_length)` gives the embeddings,
    `make_forward(pipe, guidance_scale, height, width)` one unguided denoiser call.
    """

    name: str
    encode: Callable[..., Embeds]
    make_forward: Callable[..., Forward]
    is_guided: Callable[[Any, float], bool] = lambda pipe, guidance_scale: guidance_scale > 1
    set_timesteps: Callable[..., Tensor] = set_timesteps
    latent_scale: Callable[[Any], float] = lambda pipe: 1.0
    """What the loop's latents are multiplied with, beyond the scheduler's own scaling."""
    default_size: Callable[[Any], tuple[int, int]] = default_size
    latent_patch: int = 1
    """Latent height and width have to be divisible by this."""
    latent_channels: Callable[[Any], int] = lambda pipe: pipe.transformer.config.in_channels
    unpack_latents: Callable[[Any, Tensor, int, int], Tensor] | None = None
    """Where the pipeline's own `latents` argument is (b, tokens, channels): to (b, c, h, w)."""
    noise_dtype: Callable[[Any], torch.dtype] = lambda pipe: denoiser_module(pipe).dtype
    """Precision in which the noise is drawn and the loop runs."""
    one_step_x0: bool = False
    """A one-step run returns the scheduler's prediction of x_0 in place of its next sample."""
    takes_negative_prompts: bool = True
    lora_targets: tuple[str, ...] = ATTENTION_LAYERS
    distilled: str = ""
    """What the name of a model says that was distilled to one step."""
    transformer: str = ""
    """Class of its transformer, where that has original layers."""
    original_layers: Mapping[str, str] = field(default_factory=dict)
    """Layers of the transformer's original code, as LoRAs of other tools name them: diffusers'
    layers, stacked along the output. A number stands for every block. Layers whose rows diffusers
    reorders (the last normalization's scale and shift) are not here."""
