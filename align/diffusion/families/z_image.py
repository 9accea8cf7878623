"""Z-Image and Z-Image-Turbo (2511.22699): prompts of their own lengths in one stream with the
picture.

The loop runs in float32, as the pipeline's does.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from align.diffusion.families.family import (
    Embeds,
    Family,
    Forward,
    at_least_float32,
    call_default,
    few_steps_by_name,
    guide_beyond,
    patch_timesteps,
)


def encode(
    pipe: Any,
    prompts: list[str],
    negative_prompts: list[str] | None,
    guided: bool,
    max_sequence_length: int | None,
) -> Embeds:
    positive, negative = pipe.encode_prompt(
        list(prompts),  # the pipeline writes its template into the list that it is given
        device=pipe._execution_device,
        do_classifier_free_guidance=guided,
        negative_prompt=None if negative_prompts is None else list(negative_prompts),
        max_sequence_length=max_sequence_length or call_default(pipe, "max_sequence_length"),
    )
    embeds = _padded(positive)
    if guided:
        embeds |= {f"negative_{name}": value for name, value in _padded(negative).items()}
    return embeds


def _padded(rows: list[Tensor]) -> Embeds:
    """Texts [(n, width)] of any length as one tensor, with a mask that is False at padding."""
    lengths = torch.tensor([len(row) for row in rows], device=rows[0].device)
    text = pad_sequence(rows, batch_first=True)  # (b, longest, width)
    places = torch.arange(text.shape[1], device=text.device)
    return {"prompt_embeds": text, "prompt_embeds_mask": places < lengths[:, None]}


def make_forward(pipe: Any, guidance_scale: float, height: int, width: int) -> Forward:
    transformer = pipe.transformer

    def forward(latents: Tensor, timestep: Tensor, embeds: Embeds) -> Tensor:
        text, dtype = embeds["prompt_embeds"], transformer.dtype
        lengths = embeds["prompt_embeds_mask"].sum(1).tolist()
        pictures = transformer(
            list(latents.to(dtype).unsqueeze(2).unbind()),  # each (c, 1, h, w)
            (1000 - timestep.expand(len(latents))) / 1000,
            [row[:length] for row, length in zip(text, lengths, strict=True)],
            return_dict=False,
        )[0]
        output = torch.stack(pictures).squeeze(2)
        return -output.to(at_least_float32(output.dtype))  # it predicts image minus noise

    return forward


def text_like(pipe: Any) -> Embeds:
    length, width = call_default(pipe, "max_sequence_length"), pipe.text_encoder.config.hidden_size
    return {
        "prompt_embeds": torch.empty(1, length, width, device="meta", dtype=pipe.transformer.dtype),
        "prompt_embeds_mask": torch.ones(1, length, dtype=torch.bool),
    }


BLOCK_LAYERS = {
    "attention.qkv": "attention.to_q to_k to_v",
    "attention.out": "attention.to_out.0",
} | {
    layer: layer
    for layer in ("feed_forward.w1", "feed_forward.w2", "feed_forward.w3", "adaLN_modulation.0")
}
LAYERS = {
    f"{blocks}.0.{original}": f"{blocks}.0.{written}"
    for blocks in ("layers", "noise_refiner", "context_refiner")
    for original, written in BLOCK_LAYERS.items()
} | {layer: layer for layer in ("cap_embedder.1", "t_embedder.mlp.0", "t_embedder.mlp.2")}
LAYERS |= {
    "x_embedder": "all_x_embedder.2-1",  # of patches of 2x2 cells of one frame, the only ones there
    "final_layer.linear": "all_final_layer.2-1.linear",
    "final_layer.adaLN_modulation.1": "all_final_layer.2-1.adaLN_modulation.1",
}
FAMILY = Family(
    name="Z-Image",
    encode=encode,
    make_forward=make_forward,
    is_guided=lambda pipe, guidance_scale: guidance_scale > 0,
    guide=guide_beyond,
    set_timesteps=patch_timesteps,
    default_size=lambda pipe: (1024, 1024),
    latent_patch=2,
    noise_dtype=lambda pipe: at_least_float32(pipe.transformer.dtype),
    few_steps=few_steps_by_name("turbo", 8),  # its configs are those of the base model
    masked_attention=True,
    transformer="ZImageTransformer2DModel",
    original_layers=LAYERS,
    text_like=text_like,
)
