"""SANA (flow matching) and SANA-Sprint (consistency in TrigFlow, one to four steps)."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from align.diffusion.families.family import (
    Embeds,
    Family,
    Forward,
    at_least_float32,
    call_default,
)
from align.diffusion.families.pixart import CROSS_LAYERS


def encode(
    pipe: Any,
    prompts: list[str],
    negative_prompts: list[str] | None,
    guided: bool,
    max_sequence_length: int | None,
) -> Embeds:
    guidance = {}
    if call_default(pipe, "negative_prompt") is not None:  # SANA-Sprint has none
        guidance = {
            "do_classifier_free_guidance": guided,
            "negative_prompt": negative_prompts or "",
        }
    positive, mask, *negatives = pipe.encode_prompt(
        prompts,
        device=pipe._execution_device,
        clean_caption=call_default(pipe, "clean_caption"),
        max_sequence_length=max_sequence_length or call_default(pipe, "max_sequence_length"),
        complex_human_instruction=call_default(pipe, "complex_human_instruction"),
        **guidance,
    )
    embeds = {"prompt_embeds": positive, "prompt_attention_mask": mask}
    if guided:
        embeds |= {
            "negative_prompt_embeds": negatives[0],
            "negative_prompt_attention_mask": negatives[1],
        }
    return embeds


def make_forward(pipe: Any, guidance_scale: float, height: int, width: int) -> Forward:
    transformer = pipe.transformer

    def forward(latents: Tensor, timestep: Tensor, embeds: Embeds) -> Tensor:
        output = transformer(
            latents.to(transformer.dtype),
            encoder_hidden_states=embeds["prompt_embeds"].to(transformer.dtype),
            encoder_attention_mask=embeds["prompt_attention_mask"],
            timestep=timestep.expand(latents.shape[0]) * transformer.config.timestep_scale,
            return_dict=False,
        )[0]
        output = output[:, : transformer.config.in_channels]  # without a learned variance
        return output.to(at_least_float32(output.dtype))

    return forward


def make_sprint_forward(pipe: Any, guidance_scale: float, height: int, width: int) -> Forward:
    """SANA-Sprint (2503.09641): a flow-matching transformer asked in TrigFlow's terms, eq. 5-7."""
    transformer, sigma_data = pipe.transformer, sigma_data_of(pipe)

    def forward(latents: Tensor, timestep: Tensor, embeds: Embeds) -> Tensor:
        batch, dtype = latents.shape[0], transformer.dtype
        flow_time = torch.sin(timestep) / (torch.cos(timestep) + torch.sin(timestep))
        norm = torch.sqrt(flow_time**2 + (1 - flow_time) ** 2)
        inputs = latents / sigma_data * norm
        guidance = torch.full((batch,), guidance_scale, device=latents.device, dtype=dtype)
        output = transformer(
            inputs.to(dtype),
            encoder_hidden_states=embeds["prompt_embeds"].to(dtype),
            encoder_attention_mask=embeds["prompt_attention_mask"],
            guidance=guidance * transformer.config.guidance_embeds_scale,
            timestep=flow_time.expand(batch),
            return_dict=False,
        )[0]
        mixed = (1 - 2 * flow_time) * inputs + (1 - 2 * flow_time + 2 * flow_time**2) * output
        return (mixed / norm).to(at_least_float32(output.dtype)) * sigma_data

    return forward


def sigma_data_of(pipe: Any) -> float:
    return pipe.scheduler.config.sigma_data


def set_sprint_timesteps(
    pipe: Any,
    scheduler: Any,
    num_inference_steps: int,
    device: torch.device,
    latent_size: tuple[int, int],
) -> Tensor:
    scheduler.set_timesteps(
        num_inference_steps,
        device=device,
        max_timesteps=call_default(pipe, "max_timesteps"),
        # The pipeline's own default stops runs of other lengths; the scheduler spaces them.
        intermediate_timesteps=call_default(pipe, "intermediate_timesteps")
        if num_inference_steps == 2
        else None,
    )
    return scheduler.timesteps[:-1]  # the last is the end, not a step


def default_size(pipe: Any) -> tuple[int, int]:
    return call_default(pipe, "height"), call_default(pipe, "width")


SANA_LAYERS = CROSS_LAYERS | {
    "x_embedder.proj": "patch_embed.proj",
    "t_embedder.mlp.0": "time_embed.emb.timestep_embedder.linear_1",
    "t_embedder.mlp.2": "time_embed.emb.timestep_embedder.linear_2",
    "t_block.1": "time_embed.linear",
    "blocks.0.mlp.inverted_conv.conv": "transformer_blocks.0.ff.conv_inverted",
    "blocks.0.mlp.depth_conv.conv": "transformer_blocks.0.ff.conv_depth",
    "blocks.0.mlp.point_conv.conv": "transformer_blocks.0.ff.conv_point",
}
FAMILY = Family(
    name="SANA",
    encode=encode,
    make_forward=make_forward,
    default_size=default_size,
    noise_dtype=lambda pipe: at_least_float32(pipe.transformer.dtype),
    transformer="SanaTransformer2DModel",
    original_layers=SANA_LAYERS,
)
SPRINT = replace(
    FAMILY,
    name="SANA-Sprint",
    make_forward=make_sprint_forward,
    is_guided=lambda pipe, guidance_scale: False,
    set_timesteps=set_sprint_timesteps,
    latent_scale=sigma_data_of,
    takes_negative_prompts=False,
)
