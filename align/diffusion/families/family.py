"""What a family of pipelines has to say about itself."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

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


def cat_rows(rows: Sequence[Embeds]) -> Embeds:
    """The rows of several prompts' embeddings as one batch, those of shorter prompts padded.

    Padded with zeros along axis 1; a mask, of which a family of varying lengths always has one,
    is zero there. Raises ValueError for lengths that differ where there is no mask.
    """
    joined = {}
    for name in rows[0]:
        parts = [row[name] for row in rows]
        longest = max(part.shape[1] for part in parts)
        if any(part.shape[1] < longest for part in parts):
            if not any("mask" in other for other in rows[0]):
                raise ValueError(
                    f"{name} of several prompts differ in length, up to {longest} tokens, and have "
                    "no mask that could tell padding from text; encode the prompts together"
                )
            parts = [
                pad(part, (*(0,) * 2 * (part.ndim - 2), 0, longest - part.shape[1]))
                for part in parts
            ]
        joined[name] = torch.cat(parts)
    return joined


def at_least_float32(dtype: torch.dtype) -> torch.dtype:
    """The precision of a loop of which only the transformer may run in half."""
    return torch.promote_types(dtype, torch.float32)


def guide(with_prompt: Tensor, without: Tensor, guidance_scale: float) -> Tensor:
    """Classifier-free guidance (2207.12598, equation 6) as most pipelines count its scale: 1 is
    none."""
    return without + guidance_scale * (with_prompt - without)


def guide_beyond(with_prompt: Tensor, without: Tensor, guidance_scale: float) -> Tensor:
    """Guidance whose scale counts from the prompt's own output: 0 is none, 1 is twice its pull."""
    return with_prompt + guidance_scale * (with_prompt - without)


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


def image_shift(
    scheduler: Any, latent_size: tuple[int, int], max_shift: float = 1.15, max_patches: int = 4096
) -> float:
    """The flow schedule's shift `mu`, linear in the number of 2x2 patches of the latents.

    Stable Diffusion 3 (2403.03206, section 5.3.2) and FLUX: larger pictures need more noise.
    """
    patches = (latent_size[0] // 2) * (latent_size[1] // 2)
    return shift_of_patches(scheduler, patches, max_shift, max_patches)


def shift_of_patches(
    scheduler: Any, patches: int, max_shift: float = 1.15, max_patches: int = 4096
) -> float:
    """`image_shift` of so many patches."""
    config = scheduler.config
    few, many = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", max_patches)
    low, high = config.get("base_shift", 0.5), config.get("max_shift", max_shift)
    return low + (high - low) * (patches - few) / (many - few)


def even_timesteps(
    scheduler: Any, num_inference_steps: int, device: torch.device, mu: float
) -> Tensor:
    """A flow's timesteps from noise levels 1, ..., 1/n, evenly spaced before their shift `mu`.

    Raises ValueError for a single step where the schedule is stretched to end at
    `shift_terminal`.
    """
    if num_inference_steps == 1 and scheduler.config.get("shift_terminal"):
        raise ValueError(
            f"num_inference_steps is 1; {type(scheduler).__name__} with shift_terminal "
            f"{scheduler.config.shift_terminal:g} needs at least 2"
        )
    spacing: dict[str, Any] = {
        "sigmas": np.linspace(1.0, 1 / num_inference_steps, num_inference_steps)
    }
    if scheduler.config.get("use_flow_sigmas"):
        spacing = {"num_inference_steps": num_inference_steps}
    scheduler.set_timesteps(device=device, mu=mu, **spacing)
    return scheduler.timesteps


def patch_timesteps(
    pipe: Any,
    scheduler: Any,
    num_inference_steps: int,
    device: torch.device,
    latent_size: tuple[int, int],
) -> Tensor:
    """`even_timesteps` shifted by the number of 2x2 patches, as FLUX and many after it."""
    mu = image_shift(scheduler, latent_size)
    return even_timesteps(scheduler, num_inference_steps, device, mu)


def default_square(pipe: Any) -> tuple[int, int]:
    """The default (height, width) of pipelines that keep theirs in latent cells."""
    return (pipe.default_sample_size * pipe.vae_scale_factor,) * 2


def is_distilled(pipe: Any, mark: str) -> bool:
    """Whether a model's name tells by this mark that it was distilled to few steps: SD-Turbo,
    SDXL-Turbo, the embedded turbo model, PixArt-DMD."""
    name = Path(str(pipe.config.get("_name_or_path", ""))).name.lower()
    return mark in name


def few_steps_by_name(mark: str, steps: int = 1) -> Callable[[Any], int | None]:
    """`Family.few_steps` of pipelines of which the model's name alone tells."""
    return lambda pipe: steps if is_distilled(pipe, mark) else None


def few_steps_if_distilled(steps: int) -> Callable[[Any], int | None]:
    """`Family.few_steps` of pipelines whose model_index.json tells whether they are distilled."""
    return lambda pipe: steps if pipe.config.get("is_distilled") else None


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
    latent_factor: Callable[[Any], int] = lambda pipe: pipe.vae_scale_factor
    """Pixels to a side of a cell of the loop's latents."""
    frame_factor: Callable[[Any], int] | None = None
    """Frames to a cell of the latents' time axis, after the first, which has its own; None for
    pipelines of pictures."""
    latent_patch: int = 1
    """Latent height and width have to be divisible by this."""
    latent_channels: Callable[[Any], int] = lambda pipe: pipe.transformer.config.in_channels
    unpack_latents: Callable[[Any, Tensor, int, int], Tensor] | None = None
    """Where the pipeline's own `latents` argument is (b, tokens, channels): to (b, c, h, w)."""
    noise_dtype: Callable[[Any], torch.dtype] = lambda pipe: denoiser_module(pipe).dtype
    """Precision in which the noise is drawn and the loop runs."""
    one_step_x0: bool = False
    """A one-step run returns the scheduler's prediction of x_0 in place of its next sample."""
    guide: Callable[[Tensor, Tensor, float], Tensor] = guide
    """(output with the prompt, without it, scale) -> the guided output."""
    guidance_argument: str = "guidance_scale"
    """What the pipeline's `__call__` calls the scale."""
    few_steps: Callable[[Any], int | None] = lambda pipe: None
    """The steps that a model was distilled to, without guidance; None for one that was not."""
    decode: Callable[[Any, Tensor], Tensor] | None = None
    """(autoencoder, latents) -> pixels, about -1 to 1; None where the autoencoder's config says
    all."""
    takes_negative_prompts: bool = True
    own_negative: str | None = None
    """What a pipeline that guides only where a negative prompt is given has to be given."""
    masked_attention: bool = False
    """Attention has masks, which xformers as diffusers calls it gets wrong."""
    lora_targets: tuple[str, ...] = ATTENTION_LAYERS
    unused_layers: Callable[[Any], tuple[str, ...]] = lambda pipe: ()
    """Names, or their beginnings, of layers that no picture depends on."""
    text_like: Callable[[Any], Embeds] | None = None
    """One prompt's embeddings at full length on `meta`, their masks real, where the text encoder
    looks at numbers and cannot run there."""
    transformer: str = ""
    """Class of its transformer, where that has original layers."""
    original_layers: Mapping[str, str] | None = None
    """Layers of the transformer's original code, as LoRAs of other tools name them: diffusers'
    layers, stacked along the output. A number stands for every block; empty where the names are
    diffusers' own. Layers whose rows diffusers reorders (the last normalization's scale and shift)
    are not here."""
