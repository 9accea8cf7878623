"""SDXL and SDXL-Turbo: two text encoders, pooled text and sizes as added conditions."""

from typing import Any

from torch import Tensor

from align.diffusion.families import stable_diffusion
from align.diffusion.families.family import Embeds, Family, Forward, few_steps_by_name


def encode(
    pipe: Any,
    prompts: list[str],
    negative_prompts: list[str] | None,
    guided: bool,
    max_sequence_length: int | None,
) -> Embeds:
    stable_diffusion.refuse_sequence_length(pipe, max_sequence_length)
    positive, negative, pooled, negative_pooled = pipe.encode_prompt(
        prompts,
        device=pipe._execution_device,
        do_classifier_free_guidance=guided,
        negative_prompt=negative_prompts,
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
        pooled = embeds["pooled_prompt_embeds"]
        # original size, crop corner and target size: an uncropped picture of this very size
        sizes = pipe._get_add_time_ids(
            (height, width), (0, 0), (height, width), pooled.dtype, int(pooled.shape[-1])
        )
        sizes = sizes.to(latents.device).repeat(latents.shape[0], 1)
        return pipe.unet(
            latents,
            timestep,
            encoder_hidden_states=embeds["prompt_embeds"],
            timestep_cond=stable_diffusion.guidance_embedding(pipe, guidance_scale, latents),
            added_cond_kwargs={"text_embeds": pooled, "time_ids": sizes},
            return_dict=False,
        )[0]

    return forward


FAMILY = Family(
    name="SDXL",
    encode=encode,
    make_forward=make_forward,
    is_guided=stable_diffusion.FAMILY.is_guided,
    latent_channels=stable_diffusion.FAMILY.latent_channels,
    few_steps=few_steps_by_name("turbo"),
)
