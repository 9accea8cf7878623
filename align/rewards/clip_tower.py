"""CLIP as the tower of rewards: transformers' `CLIPModel` with a differentiable view of pictures.

Also reads OpenCLIP checkpoints (as HPS is published) by renaming their keys.
"""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer
from transformers.initialization import no_init_weights

from align.rewards.resize import check_size, crop_to, normalise
from align.rewards.weights import fill, load_model, read_checkpoint
from align.rewards.words import token_ids

# OpenCLIP's `ViT-H-14.json`; a file `open_clip_config.json` beside a checkpoint says otherwise.
VIT_H_14 = {
    "embed_dim": 1024,
    "vision_cfg": {
        "image_size": 224, "layers": 32, "width": 1280, "head_width": 80, "patch_size": 14,
    },
    "text_cfg": {
        "context_length": 77, "vocab_size": 49408, "width": 1024, "heads": 16, "layers": 24,
    },
}  # fmt: skip
# OpenCLIP's names of a transformer's parts, and transformers' names for them.
_BLOCK = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
    "attn.out_proj": "self_attn.out_proj",
}
_OUTSIDE = {
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.ln_pre": "vision_model.pre_layrnorm",
    "visual.ln_post": "vision_model.post_layernorm",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final": "text_model.final_layer_norm",
    "logit_scale": "logit_scale",
}


class ClipTower(nn.Module):
    """Unit features of pictures and prompts.

    Args:
        model: any CLIP of transformers.
        tokenizer: its own.
        name: of the reward, for messages.
        view: images [b, 3, h, w] in [0, 1] and the tower's size to [b, 3, size, size] in [0, 1].
        clean: what is done to a prompt before it is split into tokens.
    """

    def __init__(
        self,
        model: CLIPModel,
        tokenizer: CLIPTokenizer,
        name: str,
        view: Callable[[Tensor, int], Tensor] = crop_to,
        clean: Callable[[str], str] = str,
    ):
        super().__init__()
        self.model: Any = model  # transformers' configs are wide unions
        self.tokenizer: Any = tokenizer
        self.name = name
        self.view = view
        self.clean = clean

    def images(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b d"]:
        """Unit features. Raises ValueError for images smaller than one patch."""
        config = self.model.config.vision_config
        check_size(images, config.patch_size, self.name)
        pixels = normalise(self.view(images.to(self.model.logit_scale), config.image_size))
        return unit(self.model.get_image_features(pixels).pooler_output)

    def prompts(self, prompts: list[str]) -> Float[Tensor, "b d"]:
        """Unit features; warns of prompts longer than the window."""
        length = self.model.config.text_config.max_position_embeddings
        cleaned = [self.clean(prompt) for prompt in prompts]
        ids = token_ids(self.tokenizer, cleaned, length, self.name)["input_ids"]
        # Padding follows the end token, which a causal model reads off: no mask is needed.
        ids = ids.to(self.model.logit_scale.device)
        return unit(self.model.get_text_features(ids).pooler_output)

    def cosine(self, images: Float[Tensor, "b 3 h w"], prompts: list[str]) -> Float[Tensor, " b"]:
        """cos(image, prompt), in [-1, 1]."""
        return (self.images(images) * self.prompts(prompts)).sum(-1)


def unit(features: Float[Tensor, "b d"]) -> Float[Tensor, "b d"]:
    """Features of length 1."""
    return F.normalize(features, dim=-1)


def load_clip(folder: Path, words: Path | None = None) -> tuple[CLIPModel, CLIPTokenizer]:
    """A CLIP of transformers and its tokenizer (of the folder `words`, if not the same one)."""
    return load_model(CLIPModel, folder), CLIPTokenizer.from_pretrained(words or folder)


def load_open_clip(path: Path) -> CLIPModel:
    """The CLIP of an OpenCLIP checkpoint, ViT-H/14 unless `open_clip_config.json` lies beside it.

    Raises ValueError for a file that is no such checkpoint.
    """
    beside = path.parent / "open_clip_config.json"
    described = json.loads(beside.read_text()) if beside.is_file() else {"model_cfg": VIT_H_14}
    tensors = convert_open_clip(read_checkpoint(path))
    with no_init_weights():  # a billion random numbers would be overwritten
        model = CLIPModel(open_clip_config(described["model_cfg"]))
    return fill(model, tensors, path)


def open_clip_config(model: dict[str, Any]) -> CLIPConfig:
    """transformers' config of an OpenCLIP `model_cfg`."""
    vision, text = model["vision_cfg"], model["text_cfg"]
    activation = "quick_gelu" if model.get("quick_gelu") else "gelu"
    shared = {"projection_dim": model["embed_dim"], "hidden_act": activation}
    return CLIPConfig(
        text_config=shared
        | {
            "vocab_size": text["vocab_size"],
            "hidden_size": text["width"],
            "intermediate_size": 4 * text["width"],
            "num_hidden_layers": text["layers"],
            "num_attention_heads": text["heads"],
            "max_position_embeddings": text["context_length"],
            "bos_token_id": text["vocab_size"] - 2,
            "eos_token_id": text["vocab_size"] - 1,
        },
        vision_config=shared
        | {
            "image_size": vision["image_size"],
            "patch_size": vision["patch_size"],
            "hidden_size": vision["width"],
            "intermediate_size": int(vision["width"] * vision.get("mlp_ratio", 4.0)),
            "num_hidden_layers": vision["layers"],
            "num_attention_heads": vision["width"] // vision.get("head_width", 64),
        },
        projection_dim=model["embed_dim"],
    )


def convert_open_clip(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """OpenCLIP's keys to those of transformers' `CLIPModel`.

    Query, key and value come stacked and are taken apart; the two projections are transposed.
    Buffers (`attn_mask`) and the prefix of a parallel wrapper are dropped.
    """
    found: dict[str, Tensor] = {}
    for key, value in tensors.items():
        key = key.removeprefix("module.")
        block = re.fullmatch(r"(visual\.)?transformer\.resblocks\.(\d+)\.(.+)", key)
        if block:
            side = "vision_model" if block[1] else "text_model"
            found |= _convert_block(f"{side}.encoder.layers.{block[2]}", block[3], value)
        elif key in ("visual.proj", "text_projection"):
            name = "visual_projection" if key.startswith("visual") else key
            found[f"{name}.weight"] = value.T
        elif key != "attn_mask":
            whole, _, end = key.rpartition(".")
            known = _OUTSIDE.get(key) or (f"{_OUTSIDE[whole]}.{end}" if whole in _OUTSIDE else key)
            found[known] = value
    return found


def _convert_block(layer: str, part: str, value: Tensor) -> dict[str, Tensor]:
    stacked = re.fullmatch(r"attn\.in_proj_(weight|bias)", part)
    if stacked:
        names = [f"{layer}.self_attn.{one}_proj.{stacked[1]}" for one in "qkv"]
        return dict(zip(names, value.chunk(3), strict=True))
    whole, _, end = part.rpartition(".")
    return {f"{layer}.{_BLOCK.get(whole, whole)}.{end}": value}
