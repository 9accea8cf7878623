"""Krea 2, RAW and Turbo: many layers of a language model as the text, Qwen-Image's autoencoder."""

from typing import Any

import torch
from torch import Tensor

from align.diffusion.families import qwen_image
from align.diffusion.families.family import (
    Embeds,
    Family,
    Forward,
    call_default,
    even_timesteps,
    few_steps_if_distilled,
    guide_beyond,
    image_shift,
)

DISTILLED_SHIFT = 1.15  # the pipeline's, at every size


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
        )  # (b, length, layers, width) and (b, length)
        return {f"{prefix}prompt_embeds": text, f"{prefix}prompt_embeds_mask": mask}

    embeds = embeds_of(list(prompts), "")
    if guided:
        embeds |= embeds_of(list(negative_prompts or [""] * len(prompts)), "negative_")
    return embeds


def make_forward(pipe: Any, guidance_scale: float, height: int, width: int) -> Forward:
    side = pipe.patch_size

    def forward(latents: Tensor, timestep: Tensor, embeds: Embeds) -> Tensor:
        batch, channels, high, wide = latents.shape
        text = embeds["prompt_embeds"]
        time = (timestep / pipe.scheduler.config.num_train_timesteps).expand(batch)
        tokens = pipe.transformer(
            hidden_states=pipe._pack_latents(latents.contiguous(), batch, channels, high, wide),
            encoder_hidden_states=text,
            timestep=time.to(latents.dtype),
            position_ids=pipe.prepare_position_ids(
                text.shape[1], high // side, wide // side, latents.device
            ),
            encoder_attention_mask=embeds["prompt_embeds_mask"],
            return_dict=False,
        )[0]  # (b, h/2*w/2, 4c)
        return unpack_latents(pipe, tokens, height, width)

    return forward


def unpack_latents(pipe: Any, tokens: Tensor, height: int, width: int) -> Tensor:
    """(b, h/2*w/2, 4c), as the pipeline's `latents` argument has it, to (b, c, h, w)."""
    return pipe._unpack_latents(tokens, height, width).squeeze(2)


def set_timesteps(
    pipe: Any,
    scheduler: Any,
    num_inference_steps: int,
    device: torch.device,
    latent_size: tuple[int, int],
) -> Tensor:
    mu = DISTILLED_SHIFT
    if not pipe.config.is_distilled:
        mu = image_shift(scheduler, latent_size, max_patches=6400)
    return even_timesteps(scheduler, num_inference_steps, device, mu)


def text_like(pipe: Any) -> Embeds:
    config, length = pipe.transformer.config, call_default(pipe, "max_sequence_length")
    shape = 1, length, config.num_text_layers, config.text_hidden_dim
    return {
        "prompt_embeds": torch.empty(shape, device="meta", dtype=pipe.transformer.dtype),
        "prompt_embeds_mask": torch.ones(1, length, dtype=torch.bool),
    }


BLOCK_LAYERS = {
    "attn.wq": "attn.to_q",
    "attn.wk": "attn.to_k",
    "attn.wv": "attn.to_v",
    "attn.wo": "attn.to_out.0",
    "attn.gate": "attn.to_gate",
    "mlp.gate": "ff.gate",
    "mlp.up": "ff.up",
    "mlp.down": "ff.down",
}
LAYERS = {
    "first": "img_in",
    "tmlp.0": "time_embed.linear_1",
    "tmlp.2": "time_embed.linear_2",
    "tproj.1": "time_mod_proj",
    "txtmlp.1": "txt_in.linear_1",
    "txtmlp.3": "txt_in.linear_2",
    "txtfusion.projector": "text_fusion.projector",
    "last.linear": "final_layer.linear",
} | {
    f"{above}.0.{original}": f"{written_above}.0.{written}"
    for above, written_above in (
        ("blocks", "transformer_blocks"),
        ("txtfusion.layerwise_blocks", "text_fusion.layerwise_blocks"),
        ("txtfusion.refiner_blocks", "text_fusion.refiner_blocks"),
    )
    for original, written in BLOCK_LAYERS.items()
}
FAMILY = Family(
    name="Krea 2",
    encode=encode,
    make_forward=make_forward,
    is_guided=lambda pipe, guidance_scale: guidance_scale > 0,
    guide=guide_beyond,
    set_timesteps=set_timesteps,
    default_size=lambda pipe: (call_default(pipe, "height"), call_default(pipe, "width")),
    latent_patch=2,
    latent_channels=lambda pipe: pipe.transformer.config.in_channels // pipe.patch_size**2,
    unpack_latents=unpack_latents,
    few_steps=few_steps_if_distilled(8),
    decode=qwen_image.decode,
    masked_attention=True,
    transformer="Krea2Transformer2DModel",
    original_layers=LAYERS,
    text_like=text_like,
)
