"""Stable Diffusion 3 and 3.5: three text encoders, flow matching."""

from typing import Any

import torch
from torch import Tensor

from align.diffusion.families.family import (
    ATTENTION_LAYERS,
    Embeds,
    Family,
    Forward,
    call_default,
    image_shift,
)

JOINT_LAYERS = ("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")  # the text's side


def encode(
    pipe: Any,
    prompts: list[str],
    negative_prompts: list[str] | None,
    guided: bool,
    max_sequence_length: int | None,
) -> Embeds:
    positive, negative, pooled, negative_pooled = pipe.encode_prompt(
        prompts,
        None,
        None,
        device=pipe._execution_device,
        do_classifier_free_guidance=guided,
        negative_prompt=negative_prompts,
        max_sequence_length=max_sequence_length or call_default(pipe, "max_sequence_length"),
    )
    embeds = {"prompt_embeds": positive, "pooled_prompt_embeds": pooled}
    if guided:
        embeds |= {
            "negative_prompt_embeds": negative,
            "negative_pooled_prompt_embeds": negative_pooled,
        }
    return embeds


def make_forward(pipe: Any, guidance_scale: float, height: int, width: int) -> Forward:
    def forward(latents: Tensor, timestep: Tensor, embeds: Embeds) -> Tensor:
        return pipe.transformer(
            hidden_states=latents,
            timestep=timestep.expand(latents.shape[0]),
            encoder_hidden_states=embeds["prompt_embeds"],
            pooled_projections=embeds["pooled_prompt_embeds"],
            return_dict=False,
        )[0]

    return forward


def set_timesteps(
    pipe: Any,
    scheduler: Any,
    num_inference_steps: int,
    device: torch.device,
    latent_size: tuple[int, int],
) -> Tensor:
    shift = {}
    if scheduler.config.get("use_dynamic_shifting"):
        shift = {"mu": image_shift(scheduler, latent_size, max_shift=1.16)}
    scheduler.set_timesteps(num_inference_steps, device=device, **shift)
    return scheduler.timesteps


FAMILY = Family(
    name="Stable Diffusion 3",
    encode=encode,
    make_forward=make_forward,
    set_timesteps=set_timesteps,
    latent_patch=2,
    lora_targets=ATTENTION_LAYERS + JOINT_LAYERS,
)
