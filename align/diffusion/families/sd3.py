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


SD3_LAYERS = {
    "x_embedder.proj": "pos_embed.proj",
    "context_embedder": "context_embedder",
    "t_embedder.mlp.0": "time_text_embed.timestep_embedder.linear_1",
    "t_embedder.mlp.2": "time_text_embed.timestep_embedder.linear_2",
    "y_embedder.mlp.0": "time_text_embed.text_embedder.linear_1",
    "y_embedder.mlp.2": "time_text_embed.text_embedder.linear_2",
    "joint_blocks.0.x_block.adaLN_modulation.1": "transformer_blocks.0.norm1.linear",
    "joint_blocks.0.x_block.attn.qkv": "transformer_blocks.0.attn.to_q to_k to_v",
    "joint_blocks.0.x_block.attn.proj": "transformer_blocks.0.attn.to_out.0",
    "joint_blocks.0.x_block.attn2.qkv": "transformer_blocks.0.attn2.to_q to_k to_v",
    "joint_blocks.0.x_block.attn2.proj": "transformer_blocks.0.attn2.to_out.0",
    "joint_blocks.0.x_block.mlp.fc1": "transformer_blocks.0.ff.net.0.proj",
    "joint_blocks.0.x_block.mlp.fc2": "transformer_blocks.0.ff.net.2",
    "joint_blocks.0.context_block.attn.qkv": (
        "transformer_blocks.0.attn.add_q_proj add_k_proj add_v_proj"
    ),
    "joint_blocks.0.context_block.attn.proj": "transformer_blocks.0.attn.to_add_out",
    "joint_blocks.0.context_block.mlp.fc1": "transformer_blocks.0.ff_context.net.0.proj",
    "joint_blocks.0.context_block.mlp.fc2": "transformer_blocks.0.ff_context.net.2",
    "final_layer.linear": "proj_out",
}
FAMILY = Family(
    name="Stable Diffusion 3",
    encode=encode,
    make_forward=make_forward,
    set_timesteps=set_timesteps,
    latent_patch=2,
    lora_targets=ATTENTION_LAYERS + JOINT_LAYERS,
    transformer="SD3Transformer2DModel",
    original_layers=SD3_LAYERS,
)
