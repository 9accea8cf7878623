"""PixArt-alpha and PixArt-Sigma, and PixArt-alpha's one-step DMD form."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from align.diffusion.families.family import (
    Embeds,
    Family,
    Forward,
    call_default,
    few_steps_by_name,
    set_timesteps,
)

DMD_TIMESTEP = 400  # the one timestep that PixArt-DMD was distilled for


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
        negative_prompt=negative_prompts or "",
        device=pipe._execution_device,
        clean_caption=call_default(pipe, "clean_caption"),
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
    config = pipe.transformer.config
    # Only PixArt-alpha at 1024 was trained with the size as a condition.
    sized = type(pipe).__name__ == "PixArtAlphaPipeline" and config.sample_size == 128

    def forward(latents: Tensor, timestep: Tensor, embeds: Embeds) -> Tensor:
        batch, size = latents.shape[0], {"resolution": None, "aspect_ratio": None}
        if sized:
            like = embeds["prompt_embeds"]
            size = {
                "resolution": torch.tensor([[height, width]]).to(like).repeat(batch, 1),
                "aspect_ratio": torch.tensor([[height / width]]).to(like).repeat(batch, 1),
            }
        output = pipe.transformer(
            latents,
            encoder_hidden_states=embeds["prompt_embeds"],
            encoder_attention_mask=embeds["prompt_attention_mask"],
            timestep=timestep.expand(batch),
            added_cond_kwargs=size,
            return_dict=False,
        )[0]
        # The other half of the channels is a learned variance, which the schedulers do not use.
        return output[:, : config.in_channels]

    return forward


def pixart_timesteps(
    pipe: Any,
    scheduler: Any,
    num_inference_steps: int,
    device: torch.device,
    latent_size: tuple[int, int],
) -> Tensor:
    if num_inference_steps == 1 and SIGMA.few_steps(pipe):
        scheduler.set_timesteps(timesteps=[DMD_TIMESTEP], device=device)
        return scheduler.timesteps
    return set_timesteps(pipe, scheduler, num_inference_steps, device, latent_size)


CROSS_LAYERS = {
    "blocks.0.attn.qkv": "transformer_blocks.0.attn1.to_q to_k to_v",
    "blocks.0.attn.proj": "transformer_blocks.0.attn1.to_out.0",
    "blocks.0.cross_attn.q_linear": "transformer_blocks.0.attn2.to_q",
    "blocks.0.cross_attn.kv_linear": "transformer_blocks.0.attn2.to_k to_v",
    "blocks.0.cross_attn.proj": "transformer_blocks.0.attn2.to_out.0",
    "y_embedder.y_proj.fc1": "caption_projection.linear_1",
    "y_embedder.y_proj.fc2": "caption_projection.linear_2",
    "final_layer.linear": "proj_out",
}
PIXART_LAYERS = CROSS_LAYERS | {
    "x_embedder.proj": "pos_embed.proj",
    "t_embedder.mlp.0": "adaln_single.emb.timestep_embedder.linear_1",
    "t_embedder.mlp.2": "adaln_single.emb.timestep_embedder.linear_2",
    "csize_embedder.mlp.0": "adaln_single.emb.resolution_embedder.linear_1",
    "csize_embedder.mlp.2": "adaln_single.emb.resolution_embedder.linear_2",
    "ar_embedder.mlp.0": "adaln_single.emb.aspect_ratio_embedder.linear_1",
    "ar_embedder.mlp.2": "adaln_single.emb.aspect_ratio_embedder.linear_2",
    "t_block.1": "adaln_single.linear",
    "blocks.0.mlp.fc1": "transformer_blocks.0.ff.net.0.proj",
    "blocks.0.mlp.fc2": "transformer_blocks.0.ff.net.2",
}
SIGMA = Family(
    name="PixArt",
    encode=encode,
    make_forward=make_forward,
    latent_patch=2,
    few_steps=few_steps_by_name("dmd"),
    transformer="PixArtTransformer2DModel",
    original_layers=PIXART_LAYERS,
)
ALPHA = replace(SIGMA, set_timesteps=pixart_timesteps, one_step_x0=True)
