"""Lumina-Image 2.0 (2503.21758): a system prompt before each prompt, Gemma-2, one stream."""

from typing import Any

import torch
from torch import Tensor

from align.diffusion.families import family as plain
from align.diffusion.families.family import (
    Embeds,
    Family,
    Forward,
    call_default,
    default_square,
    even_timesteps,
    shift_of_patches,
)


def encode(
    pipe: Any,
    prompts: list[str],
    negative_prompts: list[str] | None,
    guided: bool,
    max_sequence_length: int | None,
) -> Embeds:
    positive, mask, negative, negative_mask = pipe.encode_prompt(
        prompts,
        guided,
        negative_prompt=negative_prompts,
        device=pipe._execution_device,
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
    transformer, last = pipe.transformer, pipe.scheduler.config.num_train_timesteps

    def forward(latents: Tensor, timestep: Tensor, embeds: Embeds) -> Tensor:
        output = transformer(
            hidden_states=latents,
            timestep=(1 - timestep / last).expand(len(latents)),
            encoder_hidden_states=embeds["prompt_embeds"].to(transformer.dtype),
            encoder_attention_mask=embeds["prompt_attention_mask"],
            return_dict=False,
        )[0]
        return -output  # it predicts image minus noise

    return forward


def guide(with_prompt: Tensor, without: Tensor, guidance_scale: float) -> Tensor:
    """Guidance after which each row of each channel is as strong as with the prompt alone."""
    mixed = plain.guide(with_prompt, without, guidance_scale)
    strength, own = (
        torch.linalg.vector_norm(x, dim=-1, keepdim=True) for x in (mixed, with_prompt)
    )
    return mixed * (own / strength)


def set_timesteps(
    pipe: Any,
    scheduler: Any,
    num_inference_steps: int,
    device: torch.device,
    latent_size: tuple[int, int],
) -> Tensor:
    # The pipeline counts channels where it means patches.
    mu = shift_of_patches(scheduler, pipe.transformer.config.in_channels)
    return even_timesteps(scheduler, num_inference_steps, device, mu)


def text_like(pipe: Any) -> Embeds:
    config, length = pipe.transformer.config, call_default(pipe, "max_sequence_length")
    shape, dtype = (1, length, config.cap_feat_dim), pipe.transformer.dtype
    return {
        "prompt_embeds": torch.empty(shape, device="meta", dtype=dtype),
        "prompt_attention_mask": torch.ones(1, length, dtype=torch.int64),
    }


BLOCK_LAYERS = {
    "attention.qkv": "attn.to_q to_k to_v",
    "attention.out": "attn.to_out.0",
    "feed_forward.w1": "feed_forward.linear_1",
    "feed_forward.w2": "feed_forward.linear_2",
    "feed_forward.w3": "feed_forward.linear_3",
    "adaLN_modulation.1": "norm1.linear",
}
LAYERS = {
    f"{blocks}.0.{original}": f"{blocks}.0.{written}"
    for blocks in ("layers", "noise_refiner", "context_refiner")
    for original, written in BLOCK_LAYERS.items()
}
LAYERS |= {
    "x_embedder": "x_embedder",
    "cap_embedder.1": "time_caption_embed.caption_embedder.1",
    "t_embedder.mlp.0": "time_caption_embed.timestep_embedder.linear_1",
    "t_embedder.mlp.2": "time_caption_embed.timestep_embedder.linear_2",
    "final_layer.linear": "norm_out.linear_2",
    "final_layer.adaLN_modulation.1": "norm_out.linear_1",
}
FAMILY = Family(
    name="Lumina 2",
    encode=encode,
    make_forward=make_forward,
    guide=guide,
    set_timesteps=set_timesteps,
    default_size=default_square,
    latent_patch=2,
    masked_attention=True,
    transformer="Lumina2Transformer2DModel",
    original_layers=LAYERS,
    text_like=text_like,
)
