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


FLUX_LAYERS = {
    "img_in": "x_embedder",
    "txt_in": "context_embedder",
    "time_in.in_layer": "time_text_embed.timestep_embedder.linear_1",
    "time_in.out_layer": "time_text_embed.timestep_embedder.linear_2",
    "guidance_in.in_layer": "time_text_embed.guidance_embedder.linear_1",
    "guidance_in.out_layer": "time_text_embed.guidance_embedder.linear_2",
    "vector_in.in_layer": "time_text_embed.text_embedder.linear_1",
    "vector_in.out_layer": "time_text_embed.text_embedder.linear_2",
    "double_blocks.0.img_mod.lin": "transformer_blocks.0.norm1.linear",
    "double_blocks.0.txt_mod.lin": "transformer_blocks.0.norm1_context.linear",
    "double_blocks.0.img_attn.qkv": "transformer_blocks.0.attn.to_q to_k to_v",
    "double_blocks.0.txt_attn.qkv": "transformer_blocks.0.attn.add_q_proj add_k_proj add_v_proj",
    "double_blocks.0.img_attn.proj": "transformer_blocks.0.attn.to_out.0",
    "double_blocks.0.txt_attn.proj": "transformer_blocks.0.attn.to_add_out",
    "double_blocks.0.img_mlp.0": "transformer_blocks.0.ff.net.0.proj",
    "double_blocks.0.img_mlp.2": "transformer_blocks.0.ff.net.2",
    "double_blocks.0.txt_mlp.0": "transformer_blocks.0.ff_context.net.0.proj",
    "double_blocks.0.txt_mlp.2": "transformer_blocks.0.ff_context.net.2",
    "single_blocks.0.modulation.lin": "single_transformer_blocks.0.norm.linear",
    "single_blocks.0.linear1": "single_transformer_blocks.0.attn.to_q to_k to_v .proj_mlp",
    "single_blocks.0.linear2": "single_transformer_blocks.0.proj_out",
    "final_layer.linear": "proj_out",
}
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
    transformer="FluxTransformer2DModel",
    original_layers=FLUX_LAYERS,
)
