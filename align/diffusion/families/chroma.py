"""Chroma: FLUX's latents and blocks, a mask over T5's padding, guidance by two calls."""

from collections.abc import Callable
from typing import Any

import torch
from diffusers.models.transformers.transformer_chroma import ChromaSingleTransformerBlock
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from align.diffusion.families import flux
from align.diffusion.families.family import (
    Embeds,
    Family,
    Forward,
    call_default,
    default_square,
    patch_timesteps,
)


def encode(
    pipe: Any,
    prompts: list[str],
    negative_prompts: list[str] | None,
    guided: bool,
    max_sequence_length: int | None,
) -> Embeds:
    positive, _, mask, negative, _, negative_mask = pipe.encode_prompt(
        prompts,
        negative_prompt=negative_prompts,
        device=pipe._execution_device,
        do_classifier_free_guidance=guided,
        max_sequence_length=max_sequence_length or call_default(pipe, "max_sequence_length"),
    )
    embeds = {"prompt_embeds": positive, "prompt_attention_mask": mask}
    if guided:
        embeds |= {
            "negative_prompt_embeds": negative,
            "negative_prompt_attention_mask": negative_mask,
        }
    return embeds


def make_forward(pipe: Any, guidance_scale: float, height: int, width: int) -> Forward:
    transformer = pipe.transformer

    def forward(latents: Tensor, timestep: Tensor, embeds: Embeds) -> Tensor:
        batch, channels, high, wide = latents.shape
        text = embeds["prompt_embeds"]
        # Ones and zeros that attention adds to its logits: what the pipeline does, and what the
        # model is used with.
        mask = pipe._prepare_attention_mask(
            batch, high * wide // 4, latents.dtype, embeds["prompt_attention_mask"]
        )
        if transformer.gradient_checkpointing:
            transformer._gradient_checkpointing_func = _recompute_with(mask)
        tokens = transformer(
            hidden_states=pipe._pack_latents(latents.contiguous(), batch, channels, high, wide),
            timestep=timestep.expand(batch).to(latents.dtype) / 1000,
            encoder_hidden_states=text,
            txt_ids=torch.zeros(text.shape[1], 3, device=text.device, dtype=text.dtype),
            img_ids=pipe._prepare_latent_image_ids(
                batch, high // 2, wide // 2, text.device, text.dtype
            ),
            attention_mask=mask,
            return_dict=False,
        )[0]  # (b, h/2*w/2, 4c)
        return flux.unpack_latents(pipe, tokens, height, width)

    return forward


def _recompute_with(mask: Tensor) -> Callable[..., Any]:
    """What recomputes a block: diffusers 0.42 leaves the mask out of the single ones where blocks
    are recomputed, which gives other pictures and gradients."""

    def recompute(block: Any, *arguments: Any) -> Any:
        if isinstance(block, ChromaSingleTransformerBlock):
            arguments = (*arguments[:3], mask)
        return checkpoint(block, *arguments, use_reentrant=False)

    return recompute


def text_like(pipe: Any) -> Embeds:
    config, length = pipe.transformer.config, call_default(pipe, "max_sequence_length")
    shape, dtype = (1, length, config.joint_attention_dim), pipe.transformer.dtype
    return {
        "prompt_embeds": torch.empty(shape, device="meta", dtype=dtype),
        "prompt_attention_mask": torch.ones(1, length, dtype=dtype),
    }


LAYERS = flux.FLUX_LAYERS | {
    f"distilled_guidance_layer.{original}": f"distilled_guidance_layer.{written}"
    for original, written in (
        ("in_proj", "in_proj"),
        ("out_proj", "out_proj"),
        ("layers.0.in_layer", "layers.0.linear_1"),
        ("layers.0.out_layer", "layers.0.linear_2"),
    )
}
FAMILY = Family(
    name="Chroma",
    encode=encode,
    make_forward=make_forward,
    set_timesteps=patch_timesteps,
    default_size=default_square,
    latent_patch=2,
    latent_channels=flux.FAMILY.latent_channels,
    unpack_latents=flux.unpack_latents,
    masked_attention=True,
    lora_targets=flux.FAMILY.lora_targets,
    transformer="ChromaTransformer2DModel",
    original_layers=LAYERS,
    text_like=text_like,
)
