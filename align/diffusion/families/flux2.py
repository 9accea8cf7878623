"""FLUX.2 klein (base and distilled) and dev: patches of 2x2 latents as channels of the loop's own.

The loop's latents are (b, 4c, h/16, w/16), normalized by statistics that the autoencoder keeps.
"""

from dataclasses import replace
from typing import Any

import torch
from diffusers.pipelines.flux2.pipeline_flux2 import compute_empirical_mu
from torch import Tensor

from align.diffusion.families.family import (
    ATTENTION_LAYERS,
    Embeds,
    Family,
    Forward,
    call_default,
    default_square,
    even_timesteps,
    few_steps_if_distilled,
)
from align.diffusion.families.flux import FLUX_LAYERS
from align.diffusion.families.sd3 import JOINT_LAYERS

SINGLE_LAYERS = ("to_qkv_mlp_proj", "to_out")  # of the blocks with one stream, all in two layers


def encode(
    pipe: Any,
    prompts: list[str],
    negative_prompts: list[str] | None,
    guided: bool,
    max_sequence_length: int | None,
) -> Embeds:
    length = max_sequence_length or call_default(pipe, "max_sequence_length")

    def embeds_of(texts: list[str]) -> Tensor:
        return pipe.encode_prompt(texts, device=pipe._execution_device, max_sequence_length=length)[
            0
        ]

    embeds = {"prompt_embeds": embeds_of(list(prompts))}
    if guided:
        embeds["negative_prompt_embeds"] = embeds_of([""] * len(prompts))
    return embeds


def make_forward(pipe: Any, guidance_scale: float, height: int, width: int) -> Forward:
    transformer = pipe.transformer

    def forward(latents: Tensor, timestep: Tensor, embeds: Embeds) -> Tensor:
        batch, text = latents.shape[0], embeds["prompt_embeds"]
        guidance = None
        if transformer.config.guidance_embeds:  # dev
            guidance = torch.full((batch,), guidance_scale, device=latents.device)
        tokens = transformer(
            hidden_states=latents.flatten(2).transpose(1, 2).to(transformer.dtype),
            timestep=timestep.expand(batch).to(latents.dtype) / 1000,
            guidance=guidance,
            encoder_hidden_states=text,
            txt_ids=pipe._prepare_text_ids(text).to(text.device),
            img_ids=pipe._prepare_latent_ids(latents).to(latents.device),
            return_dict=False,
        )[0]  # (b, h/16*w/16, 4c)
        return tokens.transpose(1, 2).unflatten(2, latents.shape[2:])

    return forward


def set_timesteps(
    pipe: Any,
    scheduler: Any,
    num_inference_steps: int,
    device: torch.device,
    latent_size: tuple[int, int],
) -> Tensor:
    mu = compute_empirical_mu(latent_size[0] * latent_size[1], num_inference_steps)
    return even_timesteps(scheduler, num_inference_steps, device, mu)


def decode(vae: Any, latents: Tensor) -> Tensor:
    shape = (1, -1, 1, 1)
    std = (vae.bn.running_var.view(shape) + vae.config.batch_norm_eps).sqrt().to(latents)
    latents = latents * std + vae.bn.running_mean.view(shape).to(latents)
    batch, channels, high, wide = latents.shape
    latents = latents.reshape(batch, channels // 4, 2, 2, high, wide).permute(0, 1, 4, 2, 5, 3)
    return vae.decode(latents.reshape(batch, -1, 2 * high, 2 * wide), return_dict=False)[0]


def text_like(pipe: Any) -> Embeds:
    shape = (
        1,
        call_default(pipe, "max_sequence_length"),
        pipe.transformer.config.joint_attention_dim,
    )
    return {"prompt_embeds": torch.empty(shape, device="meta", dtype=pipe.transformer.dtype)}


LAYERS = {
    "img_in": "x_embedder",
    "txt_in": "context_embedder",
    "time_in.in_layer": "time_guidance_embed.timestep_embedder.linear_1",
    "time_in.out_layer": "time_guidance_embed.timestep_embedder.linear_2",
    "guidance_in.in_layer": "time_guidance_embed.guidance_embedder.linear_1",
    "guidance_in.out_layer": "time_guidance_embed.guidance_embedder.linear_2",
    "double_stream_modulation_img.lin": "double_stream_modulation_img.linear",
    "double_stream_modulation_txt.lin": "double_stream_modulation_txt.linear",
    "single_stream_modulation.lin": "single_stream_modulation.linear",
    "double_blocks.0.img_mlp.0": "transformer_blocks.0.ff.linear_in",
    "double_blocks.0.img_mlp.2": "transformer_blocks.0.ff.linear_out",
    "double_blocks.0.txt_mlp.0": "transformer_blocks.0.ff_context.linear_in",
    "double_blocks.0.txt_mlp.2": "transformer_blocks.0.ff_context.linear_out",
    "single_blocks.0.linear1": "single_transformer_blocks.0.attn.to_qkv_mlp_proj",
    "single_blocks.0.linear2": "single_transformer_blocks.0.attn.to_out",
    "final_layer.linear": "proj_out",
} | {original: written for original, written in FLUX_LAYERS.items() if "_attn." in original}
KLEIN = Family(
    name="FLUX.2 klein",
    encode=encode,
    make_forward=make_forward,
    is_guided=lambda pipe, scale: scale > 1 and not pipe.config.is_distilled,
    set_timesteps=set_timesteps,
    default_size=default_square,
    latent_factor=lambda pipe: 2 * pipe.vae_scale_factor,
    few_steps=few_steps_if_distilled(4),
    decode=decode,
    takes_negative_prompts=False,  # the pipeline guides against an empty one
    lora_targets=ATTENTION_LAYERS + JOINT_LAYERS + SINGLE_LAYERS,
    transformer="Flux2Transformer2DModel",
    original_layers=LAYERS,
    text_like=text_like,
)
DEV = replace(
    KLEIN,
    name="FLUX.2",
    is_guided=lambda pipe, guidance_scale: False,
    few_steps=lambda pipe: None,
)
