"""Wan 2.1 (2503.20314), text to video: a time axis before height and width, at every place.

The loop's latents are (b, c, f, h, w), in float32; pixels are videos (b, t, 3, height, width).
"""

from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from align.diffusion.families.family import (
    Embeds,
    Family,
    Forward,
    at_least_float32,
    call_default,
)


def encode(
    pipe: Any,
    prompts: list[str],
    negative_prompts: list[str] | None,
    guided: bool,
    max_sequence_length: int | None,
) -> Embeds:
    if pipe.transformer is None or pipe.transformer_2 is not None or pipe.config.expand_timesteps:
        raise ValueError(
            f"{pipe.config.get('_name_or_path')} is a Wan 2.2; of Wan the text-to-video models of "
            "2.1 are known, such as Wan-AI/Wan2.1-T2V-1.3B-Diffusers"
        )
    positive, negative = pipe.encode_prompt(
        prompts,
        negative_prompts,
        guided,
        max_sequence_length=max_sequence_length or call_default(pipe, "max_sequence_length"),
        device=pipe._execution_device,
    )
    embeds = {"prompt_embeds": positive}
    return embeds | {"negative_prompt_embeds": negative} if guided else embeds


def make_forward(pipe: Any, guidance_scale: float, height: int, width: int) -> Forward:
    transformer = pipe.transformer

    def forward(latents: Tensor, timestep: Tensor, embeds: Embeds) -> Tensor:
        return transformer(
            hidden_states=latents.to(transformer.dtype),
            timestep=timestep.expand(len(latents)),
            encoder_hidden_states=embeds["prompt_embeds"].to(transformer.dtype),
            return_dict=False,
        )[0]

    return forward


def decode(vae: Any, latents: Tensor) -> Tensor:
    """Videos (b, t, 3, height, width), a frame of the latents after the other, as each needs what
    the decoder kept of those before.

    Without `vae.decode`'s hard clamp, which overexposed pixels could never leave. Video by video,
    each recomputed in the backward pass, where `spare_decoder` says so.
    """
    mean, std = (
        torch.tensor(values).view(1, -1, 1, 1, 1).to(latents)
        for values in (vae.config.latents_mean, vae.config.latents_std)
    )
    recomputed = vae.decoder.gradient_checkpointing and torch.is_grad_enabled()

    def video(cells: Tensor) -> Tensor:
        vae.clear_cache()
        kept, parts = vae._feat_map, []
        for index, frame in enumerate(vae.post_quant_conv(cells).split(1, dim=2)):
            first = {"first_chunk": True} if index == 0 else {}
            parts.append(vae.decoder(frame, feat_cache=kept, feat_idx=[0], **first))
        vae.clear_cache()
        return torch.cat(parts, dim=2).transpose(1, 2)

    videos = latents * std + mean
    parts = videos.split(1) if vae.use_slicing else [videos]
    return torch.cat(
        [checkpoint(video, one, use_reentrant=False) if recomputed else video(one) for one in parts]
    )


def text_like(pipe: Any) -> Embeds:
    length, width = call_default(pipe, "max_sequence_length"), pipe.transformer.config.text_dim
    return {
        "prompt_embeds": torch.empty(1, length, width, device="meta", dtype=pipe.transformer.dtype)
    }


BLOCK_LAYERS = {
    f"{original}_attn.{one}": f"attn{number}.{written}"
    for number, original in ((1, "self"), (2, "cross"))
    for one, written in (("q", "to_q"), ("k", "to_k"), ("v", "to_v"), ("o", "to_out.0"))
} | {"ffn.0": "ffn.net.0.proj", "ffn.2": "ffn.net.2"}
LAYERS = {f"blocks.0.{original}": f"blocks.0.{one}" for original, one in BLOCK_LAYERS.items()} | {
    "patch_embedding": "patch_embedding",
    "text_embedding.0": "condition_embedder.text_embedder.linear_1",
    "text_embedding.2": "condition_embedder.text_embedder.linear_2",
    "time_embedding.0": "condition_embedder.time_embedder.linear_1",
    "time_embedding.2": "condition_embedder.time_embedder.linear_2",
    "time_projection.1": "condition_embedder.time_proj",
    "head.head": "proj_out",
}
FAMILY = Family(
    name="Wan",
    encode=encode,
    make_forward=make_forward,
    default_size=lambda pipe: (call_default(pipe, "height"), call_default(pipe, "width")),
    latent_factor=lambda pipe: pipe.vae_scale_factor_spatial,
    latent_patch=2,
    frame_factor=lambda pipe: pipe.vae_scale_factor_temporal,
    noise_dtype=lambda pipe: at_least_float32(pipe.transformer.dtype),
    decode=decode,
    transformer="WanTransformer3DModel",
    original_layers=LAYERS,
    text_like=text_like,
)
