"""Stable Diffusion 1.x and 2.x, SD-Turbo, and latent consistency models (LCM)."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from align.diffusion.families.family import Embeds, Family, Forward, few_steps_by_name


def encode(
    pipe: Any,
    prompts: list[str],
    negative_prompts: list[str] | None,
    guided: bool,
    max_sequence_length: int | None,
) -> Embeds:
    refuse_sequence_length(pipe, max_sequence_length)
    positive, negative = pipe.encode_prompt(
        prompts, pipe._execution_device, 1, guided, negative_prompt=negative_prompts
    )
    return {"prompt_embeds": positive} | ({"negative_prompt_embeds": negative} if guided else {})


def refuse_sequence_length(pipe: Any, max_sequence_length: int | None) -> None:
    """Raise ValueError where a length is asked of CLIP encoders, which have a fixed one."""
    if max_sequence_length is not None:
        raise ValueError(
            f"max_sequence_length is {max_sequence_length}; {type(pipe).__name__} always reads "
            f"{pipe.tokenizer.model_max_length} tokens, leave it out"
        )


def guidance_embedding(pipe: Any, guidance_scale: float, like: Tensor) -> Tensor | None:
    """The embedding of the guidance scale that distilled UNets (LCM) take; None for others."""
    width = pipe.unet.config.time_cond_proj_dim
    if width is None:
        return None
    scale = torch.tensor(guidance_scale - 1).repeat(like.shape[0])
    return pipe.get_guidance_scale_embedding(scale, embedding_dim=width).to(like)


def make_forward(pipe: Any, guidance_scale: float, height: int, width: int) -> Forward:
    def forward(latents: Tensor, timestep: Tensor, embeds: Embeds) -> Tensor:
        return pipe.unet(
            latents,
            timestep,
            encoder_hidden_states=embeds["prompt_embeds"],
            timestep_cond=guidance_embedding(pipe, guidance_scale, latents),
            return_dict=False,
        )[0]

    return forward


FAMILY = Family(
    name="Stable Diffusion 1.x/2.x",
    encode=encode,
    make_forward=make_forward,
    is_guided=lambda pipe, scale: scale > 1 and pipe.unet.config.time_cond_proj_dim is None,
    latent_channels=lambda pipe: pipe.unet.config.in_channels,
    few_steps=few_steps_by_name("turbo"),
)
LCM = replace(
    FAMILY,
    name="Latent consistency models",
    takes_negative_prompts=False,
    few_steps=lambda pipe: None,
)
