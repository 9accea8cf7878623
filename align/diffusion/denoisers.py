"""`make_denoiser`: a pipeline, prompts and guidance behind one function of (latents, timestep).

Families of pipelines differ here and in `families/` only; the loop that calls a denoiser is
`align.diffusion.sample.sample`, the same for all of them.
"""

import functools
import logging
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from align.diffusion.families import (
    chroma,
    flux,
    flux2,
    krea2,
    lumina2,
    pixart,
    qwen_image,
    sana,
    sd3,
    sdxl,
    stable_diffusion,
    wan,
    z_image,
)
from align.diffusion.families.family import (
    Embeds,
    Family,
    Forward,
    call_default,
    cat_rows,
)
from align.diffusion.families.family import denoiser_module as denoiser_module
from align.diffusion.prompt_limits import warn_about_prompts

logger = logging.getLogger(__name__)

FAMILIES = {
    "StableDiffusionPipeline": stable_diffusion.FAMILY,
    "LatentConsistencyModelPipeline": stable_diffusion.LCM,
    "StableDiffusionXLPipeline": sdxl.FAMILY,
    "PixArtAlphaPipeline": pixart.ALPHA,
    "PixArtSigmaPipeline": pixart.SIGMA,
    "StableDiffusion3Pipeline": sd3.FAMILY,
    "FluxPipeline": flux.FAMILY,
    "SanaPipeline": sana.FAMILY,
    "SanaSprintPipeline": sana.SPRINT,
    "ZImagePipeline": z_image.FAMILY,
    "Flux2KleinPipeline": flux2.KLEIN,
    "Flux2Pipeline": flux2.DEV,
    "QwenImagePipeline": qwen_image.FAMILY,
    "Krea2Pipeline": krea2.FAMILY,
    "ChromaPipeline": chroma.FAMILY,
    "Lumina2Pipeline": lumina2.FAMILY,
    "WanPipeline": wan.FAMILY,
}

# Names of pipelines that edit, fill or follow a picture.
FROM_PICTURES = re.compile(
    r"Edit(Plus)?|Inpaint(ing)?|Img2Img|ImageToVideo|ControlNet|Kontext|Fill|InstructPix2Pix"
)


@dataclass(frozen=True)
class Denoiser:
    """A call `(latents [b, c, h, w], timestep []) -> model output [b, c, h, w]`; of videos
    [b, c, f, h, w].

    The other fields tell the loop what the family wants of the schedule; a plain function may
    stand in for a Denoiser where none of it matters.
    """

    predict: Callable[[Tensor, Tensor], Tensor]
    set_timesteps: Callable[[Any, int, torch.device], Tensor]
    """(scheduler, num_inference_steps, device) -> the timesteps to visit."""
    latent_scale: float
    one_step_x0: bool

    def __call__(
        self, latents: Float[Tensor, "b c *f h w"], timestep: Tensor
    ) -> Float[Tensor, "b c *f h w"]:
        """The guided model output at this timestep, in the scheduler's prediction type."""
        return self.predict(latents, timestep)


def make_denoiser(
    pipe: Any,
    prompts: Sequence[str] | str | None,
    *,
    negative_prompts: Sequence[str] | str | None = None,
    guidance_scale: float | None = None,
    detach_uncond: bool = False,
    checkpointing: bool = False,
    height: int | None = None,
    width: int | None = None,
    max_sequence_length: int | None = None,
    prompt_embeds: Embeds | None = None,
) -> Denoiser:
    """A denoiser for these prompts, image i for prompt i.

    `prompt_embeds` (rows of what `encode_prompts` gives) stand in for the prompts, so that a
    pipeline without its text encoders will do. `detach_uncond` keeps the unconditional branch
    of the guidance out of the graph. `checkpointing` recomputes the model in the backward pass.

    Raises ValueError for an unknown family, a size it cannot do or prompts that do not fit.
    """
    family = family_of(pipe)
    height, width = image_size(pipe, height, width)
    if guidance_scale is None:
        guidance_scale = default_guidance(pipe)
    guided = family.is_guided(pipe, guidance_scale)
    if prompt_embeds is None:
        prompt_embeds = encode_prompts(
            pipe,
            prompts,
            negative_prompts=negative_prompts,
            guidance_scale=guidance_scale,
            max_sequence_length=max_sequence_length,
        )
    forward = family.make_forward(pipe, guidance_scale, height, width)
    if checkpointing:
        forward = _checkpointed(forward)
    cond = {k: v for k, v in prompt_embeds.items() if not k.startswith("negative_")}
    if guided:
        uncond = {k: prompt_embeds[f"negative_{k}"] for k in cond}
        predict = _guide(family, forward, cond, uncond, guidance_scale, detach_uncond)
    else:
        predict = lambda latents, timestep: forward(latents, timestep, cond)  # noqa: E731
    factor = family.latent_factor(pipe)
    return Denoiser(
        predict=predict,
        set_timesteps=lambda scheduler, steps, device: family.set_timesteps(
            pipe, scheduler, steps, device, (height // factor, width // factor)
        ),
        latent_scale=family.latent_scale(pipe),
        one_step_x0=family.one_step_x0,
    )


def encode_prompts(
    pipe: Any,
    prompts: Sequence[str] | str | None,
    *,
    negative_prompts: Sequence[str] | str | None = None,
    guidance_scale: float | None = None,
    max_sequence_length: int | None = None,
) -> Embeds:
    """The prompts' embeddings by name, each with the batch first, without gradient.

    Rows can be picked and repeated freely before they go to `make_denoiser(prompt_embeds=...)`.
    Unconditional embeddings (`negative_...`) are there only where the guidance uses them.
    """
    family = family_of(pipe)
    prompts = [prompts] if isinstance(prompts, str) else list(prompts or [])
    if not prompts:
        raise ValueError("no prompts were given; at least one is needed")
    if guidance_scale is None:
        guidance_scale = default_guidance(pipe)
    guided = family.is_guided(pipe, guidance_scale)
    if (steps := family.few_steps(pipe)) and (guided or guidance_scale > 1):
        effect = "with it pictures turn harsh" if guided else "the pipeline leaves it out"
        _warn(
            f"guidance_scale is {guidance_scale:g}, but the model was distilled to "
            f"{'1 step' if steps == 1 else f'{steps} steps'} without guidance; {effect}"
        )
    if negative_prompts is not None and not (guided and family.takes_negative_prompts):
        logger.warning("The negative prompt has no effect: %s", _why_unguided(family))
        negative_prompts = None
    if isinstance(negative_prompts, str):
        negative_prompts = [negative_prompts] * len(prompts)
    if negative_prompts is not None and len(negative_prompts) != len(prompts):
        raise ValueError(
            f"{len(negative_prompts)} negative prompts for {len(prompts)} prompts; "
            "give one for all or one each"
        )
    negatives = None if negative_prompts is None else list(negative_prompts)
    warn_about_prompts(pipe, [*prompts, *(negatives or [])], max_sequence_length)
    with torch.no_grad():
        return family.encode(pipe, prompts, negatives, guided, max_sequence_length)


def family_of(pipe: Any) -> Family:
    """The family a pipeline belongs to. Raises ValueError naming the known ones."""
    for kind in type(pipe).__mro__:
        if kind.__name__ in FAMILIES:
            return FAMILIES[kind.__name__]
    raise ValueError(f"{type(pipe).__name__} is not a known kind of pipeline; {nearest_kind(pipe)}")


def nearest_kind(pipe: Any) -> str:
    """What a pipeline of no known family, or the name of its class, may have been meant to be."""
    name = pipe if isinstance(pipe, str) else type(pipe).__name__
    plain = FROM_PICTURES.sub("", name)
    near = get_close_matches(plain, FAMILIES, n=1, cutoff=0.5)
    hint = f", the nearest {near[0]}" if near else ""
    why = "it draws from a picture, not from text alone; " if plain != name else ""
    return f"{why}known pipelines: {', '.join(FAMILIES)}{hint}"


def image_size(pipe: Any, height: int | None, width: int | None) -> tuple[int, int]:
    """Height and width in pixels, the pipeline's own where None.

    Raises ValueError where a side is not a positive multiple of what the model can do.
    """
    family = family_of(pipe)
    own = family.default_size(pipe)
    height = own[0] if height is None else height
    width = own[1] if width is None else width
    unit = family.latent_factor(pipe) * family.latent_patch
    for name, side in (("height", height), ("width", width)):
        if side <= 0 or side % unit:
            raise ValueError(f"{name} is {side}; {family.name} needs a positive multiple of {unit}")
    return height, width


def latent_shape(
    pipe: Any, height: int | None, width: int | None, num_frames: int | None = None
) -> tuple[int, ...]:
    """(channels, height, width) of the latents of one image of this size in pixels; of a video
    (channels, frames, height, width)."""
    height, width = image_size(pipe, height, width)
    family = family_of(pipe)
    factor = family.latent_factor(pipe)
    frames = latent_frames(pipe, num_frames)
    return family.latent_channels(pipe), *frames, height // factor, width // factor


def latent_frames(pipe: Any, num_frames: int | None) -> tuple[int, ...]:
    """(frames of the latents,) of a video, the pipeline's own number where None; () of a picture.

    Raises ValueError for a number the family cannot do.
    """
    family = family_of(pipe)
    if family.frame_factor is None:
        if num_frames is not None:
            raise ValueError(f"num_frames is {num_frames}; {family.name} draws pictures, no videos")
        return ()
    factor = family.frame_factor(pipe)
    frames = call_default(pipe, "num_frames") if num_frames is None else num_frames
    if frames < 1 or (frames - 1) % factor:
        raise ValueError(
            f"num_frames is {frames}; {family.name} needs 1 and a multiple of {factor}"
        )
    return (1 + (frames - 1) // factor,)


def refuse_videos(pipe: Any, what: str) -> None:
    """Raise ValueError for a pipeline of videos where pictures are needed."""
    if family_of(pipe).frame_factor is not None:
        raise ValueError(
            f"{what} is for pictures, and {type(pipe).__name__} draws videos; "
            "take `align generate` or `align train --method alignprop`"
        )


def default_steps(pipe: Any) -> int:
    """Those of a distilled model, else the default of the pipeline's own `__call__`."""
    return family_of(pipe).few_steps(pipe) or call_default(pipe, "num_inference_steps")


def default_guidance(pipe: Any) -> float:
    """No guidance for distilled models, else the default of the pipeline's own `__call__`."""
    family = family_of(pipe)
    return 0.0 if family.few_steps(pipe) else call_default(pipe, family.guidance_argument)


@functools.cache
def _warn(message: str) -> None:
    logger.warning(message)


def _why_unguided(family: Family) -> str:
    if family.takes_negative_prompts:
        return "there is no guidance at this guidance scale"
    return f"{family.name} pipelines have none"


def _checkpointed(forward: Forward) -> Forward:
    def recomputed(latents: Tensor, timestep: Tensor, embeds: Embeds) -> Tensor:
        if not torch.is_grad_enabled():
            return forward(latents, timestep, embeds)
        return checkpoint(forward, latents, timestep, embeds, use_reentrant=False)

    return recomputed


def _guide(
    family: Family,
    forward: Forward,
    cond: Embeds,
    uncond: Embeds,
    guidance_scale: float,
    detach_uncond: bool,
) -> Callable[[Tensor, Tensor], Tensor]:
    """Classifier-free guidance in one batched call, as diffusers does; in two where the
    unconditional one leaves no graph."""
    both = cat_rows([uncond, cond])

    def predict(latents: Tensor, timestep: Tensor) -> Tensor:
        if detach_uncond and torch.is_grad_enabled():
            with torch.no_grad():
                without = forward(latents, timestep, uncond)
            with_prompt = forward(latents, timestep, cond)
        else:
            doubled = torch.cat([latents, latents])  # (2b, c, h, w)
            without, with_prompt = forward(doubled, timestep, both).chunk(2)
        return family.guide(with_prompt, without, guidance_scale)

    return predict
