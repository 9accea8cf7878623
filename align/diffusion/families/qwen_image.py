"""Qwen-Image (2508.02324): prompts read by a language model, an autoencoder made for videos."""

from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from align.diffusion.families import family as plain
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

NEGATIVE = " "  # as the pipeline's documentation advises; without any it leaves guidance off


def encode(
    pipe: Any,
    prompts: list[str],
    negative_prompts: list[str] | None,
    guided: bool,
    max_sequence_length: int | None,
) -> Embeds:
    length = max_sequence_length or call_default(pipe, "max_sequence_length")

    def embeds_of(texts: list[str], prefix: str) -> Embeds:
        text, mask = pipe.encode_prompt(
            texts, device=pipe._execution_device, max_sequence_length=length
        )
        if mask is None:
            mask = text.new_ones(text.shape[:2])
        return {f"{prefix}prompt_embeds": text, f"{prefix}prompt_embeds_mask": mask.bool()}

    embeds = embeds_of(list(prompts), "")
    if guided:
        embeds |= embeds_of(list(negative_prompts or [NEGATIVE] * len(prompts)), "negative_")
    return embeds


def make_forward(pipe: Any, guidance_scale: float, height: int, width: int) -> Forward:
    def forward(latents: Tensor, timestep: Tensor, embeds: Embeds) -> Tensor:
        batch, channels, high, wide = latents.shape
        mask = embeds["prompt_embeds_mask"]
        tokens = pipe.transformer(
            hidden_states=pipe._pack_latents(latents.contiguous(), batch, channels, high, wide),
            timestep=timestep.expand(batch).to(latents.dtype) / 1000,
            encoder_hidden_states=embeds["prompt_embeds"],
            # Attention without a mask is faster, and can be estimated without weights.
            encoder_hidden_states_mask=None if mask.all() else mask.to(latents.device),
            img_shapes=[[(1, high // 2, wide // 2)]] * batch,
            return_dict=False,
        )[0]  # (b, h/2*w/2, 4c)
        return unpack_latents(pipe, tokens, height, width)

    return forward


def unpack_latents(pipe: Any, tokens: Tensor, height: int, width: int) -> Tensor:
    """(b, h/2*w/2, 4c), as the pipeline's `latents` argument has it, to (b, c, h, w)."""
    return pipe._unpack_latents(tokens, height, width, pipe.vae_scale_factor).squeeze(2)


def guide(with_prompt: Tensor, without: Tensor, guidance_scale: float) -> Tensor:
    """Guidance after which each patch of 2x2 cells is as strong as with the prompt alone."""
    mixed = _patches(plain.guide(with_prompt, without, guidance_scale))
    strength, own = (
        torch.linalg.vector_norm(patches, dim=(1, 3, 5), keepdim=True)
        for patches in (mixed, _patches(with_prompt))
    )
    return (mixed * (own / strength)).reshape(with_prompt.shape)


def _patches(latents: Tensor) -> Tensor:
    batch, channels, high, wide = latents.shape
    return latents.reshape(batch, channels, high // 2, 2, wide // 2, 2)


def decode(vae: Any, latents: Tensor) -> Tensor:
    """The picture as a video of one frame.

    By the decoder itself: `vae.decode` ends in a hard clamp, which overexposed pixels could never
    leave, and keeps for later frames what it has no use for here. Image by image, with its blocks
    recomputed, where `spare_decoder` says so.
    """
    mean, std = (
        torch.tensor(values).view(1, -1, 1, 1).to(latents)
        for values in (vae.config.latents_mean, vae.config.latents_std)
    )
    clips, decoder = (latents * std + mean).unsqueeze(2), vae.decoder
    recomputed = decoder.gradient_checkpointing and torch.is_grad_enabled()

    def picture(clip: Tensor) -> Tensor:
        x = decoder.mid_block(decoder.conv_in(vae.post_quant_conv(clip)))
        for block in decoder.up_blocks:
            x = checkpoint(block, x, use_reentrant=False) if recomputed else block(x)
        return decoder.conv_out(decoder.nonlinearity(decoder.norm_out(x))).squeeze(2)

    return torch.cat([picture(one) for one in (clips.split(1) if vae.use_slicing else [clips])])


def unused_layers(pipe: Any) -> tuple[str, ...]:
    """The last block's output of text."""
    last = f"transformer_blocks.{len(pipe.transformer.transformer_blocks) - 1}"
    return f"{last}.attn.to_add_out", f"{last}.txt_mlp"


def text_like(pipe: Any) -> Embeds:
    config, length = pipe.transformer.config, call_default(pipe, "max_sequence_length")
    shape, dtype = (1, length, config.joint_attention_dim), pipe.transformer.dtype
    return {
        "prompt_embeds": torch.empty(shape, device="meta", dtype=dtype),
        "prompt_embeds_mask": torch.ones(1, length, dtype=torch.bool),
    }


FAMILY = Family(
    name="Qwen-Image",
    encode=encode,
    make_forward=make_forward,
    guide=guide,
    guidance_argument="true_cfg_scale",
    own_negative=NEGATIVE,
    set_timesteps=patch_timesteps,
    default_size=default_square,
    latent_patch=2,
    latent_channels=lambda pipe: pipe.transformer.config.in_channels // 4,
    unpack_latents=unpack_latents,
    decode=decode,
    masked_attention=True,
    lora_targets=ATTENTION_LAYERS + JOINT_LAYERS,
    unused_layers=unused_layers,
    transformer="QwenImageTransformer2DModel",
    original_layers={},
    text_like=text_like,
)
