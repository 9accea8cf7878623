"""FLUX.1 dev and schnell: latents in packed 2x2 patches, guidance as an embedding.

The loop sees unpacked latents `(b, c, h, w)` as with every family: a scheduler's step works
number by number, so it does not matter to it.
"""

from typing import Any

import torch
from torch import Tensor

from align.diffusion.families.family import (
    ATTENTION_LAYERS,
    Embeds,
    Family,
    Forward,
    call_default,
    default_square,
    patch_timesteps,
)
from align.diffusion.families.sd3 import JOINT_LAYERS


def encode(
    pipe: Any,
    prompts: list[str],
    negative_prompts: list[str] | None,
    guided: bool,
    max_sequence_length: int | None,
) -> Embeds:
    positive, pooled, _ = pipe.encode_prompt(
        prompts,
        device=pipe._execution_device,
        max_sequence_length=max_sequence_length or call_default(pipe, "max_sequence_length"),
    )
    return {"prompt_embeds": positive, "pooled_prompt_embeds": pooled}


def make_forward(pipe: Any, guidance_scale: float, height: int, width: int) -> Forward:
    def forward(latents: Tensor, timestep: Tensor, embeds: Embeds) -> Tensor:
        batch, channels, high, wide = latents.shape
        text = embeds["prompt_embeds"]
        guidance = None
        if pipe.transformer.config.guidance_embeds:  # dev; schnell has none
            guidance = torch.full((batch,), guidance_scale, device=latents.device)
        tokens = pipe.transformer(
            hidden_states=pipe._pack_latents(latents.contiguous(), batch, channels, high, wide),
            timestep=timestep.expand(batch).to(latents.dtype) / 1000,
            guidance=guidance,
            pooled_projections=embeds["pooled_prompt_embeds"],
            encoder_hidden_states=text,
            txt_ids=torch.zeros(text.shape[1], 3, device=text.device, dtype=text.dtype),
            img_ids=pipe._prepare_latent_image_ids(
                batch, high // 2, wide // 2, text.device, text.dtype
            ),
            return_dict=False,
        )[0]  # (b, h/2*w/2, 4c)
        return unpack_latents(pipe, tokens, height, width)

    return forward


def unpack_latents(pipe: Any, tokens: Tensor, height: int, width: int) -> Tensor:
    """(b, h/2*w/2, 4c), as the pipeline's `latents` argument has it, to (b, c, h, w)."""
    return pipe._unpack_latents(tokens, height, width, pipe.vae_scale_factor)


FAMILY = Family(
    name="FLUX",
    encode=encode,
    make_forward=make_forward,
    is_guided=lambda pipe, guidance_scale: False,
    set_timesteps=patch_timesteps,
    default_size=default_square,
    latent_patch=2,
    latent_channels=lambda pipe: pipe.transformer.config.in_channels // 4,
    unpack_latents=unpack_latents,
    takes_negative_prompts=False,
    lora_targets=ATTENTION_LAYERS + JOINT_LAYERS,
)
