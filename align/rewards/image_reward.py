"""`image-reward`: ImageReward (arXiv 2304.05977), BLIP trained on rankings by experts.

A ViT-L/16 sees the picture; a BERT reads the prompt and looks at the picture through cross
attention; the state of its first token goes through five linear layers without activations, here
folded into one:

    score = (w . h + b - 0.16717363) / 1.03333950

so that scores of real pictures have about mean 0 and standard deviation 1. The file is the
original one, its keys renamed to transformers' `BlipVisionModel` and `BlipTextModel`.
"""

import math
import re
from functools import partial
from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn
from transformers import (
    BertTokenizer,
    BlipTextConfig,
    BlipTextModel,
    BlipVisionConfig,
    BlipVisionModel,
)

from align.rewards.aesthetic import fold
from align.rewards.catalogue import sources
from align.rewards.resize import check_size, crop_to, normalise
from align.rewards.weights import fill, find, locate_file, read_checkpoint
from align.rewards.words import token_ids

NAME = "image-reward"
MEAN, STD = 0.16717362830052426, 1.0333394966054072
WINDOW = 35  # tokens of a prompt
HEAD_WIDTH = 64  # of every published BLIP
# The original vision transformer's names and those of BlipVisionModel.
_VISION = {
    "cls_token": "embeddings.class_embedding",
    "pos_embed": "embeddings.position_embedding",
    "patch_embed.proj": "embeddings.patch_embedding",
    "norm": "post_layernorm",
    "norm1": "layer_norm1",
    "norm2": "layer_norm2",
    "attn.qkv": "self_attn.qkv",
    "attn.proj": "self_attn.projection",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}
# Of BLIP's pre-training, and not looked at when scoring.
_UNUSED = re.compile(
    r"blip\.(vision_proj|text_proj|itm_head|text_decoder|\w+_m|\w+_queue|queue_ptr|temp)\b.*"
    r"|blip\.text_encoder\.embeddings\.position_ids"
)


class ImageReward(nn.Module):
    """(w . h + b - mean) / std; unbounded, real pictures about -2 to 2."""

    def __init__(
        self,
        vision: BlipVisionModel,
        text: BlipTextModel,
        head: nn.Linear,
        tokenizer: BertTokenizer,
    ):
        super().__init__()
        self.vision: Any = vision  # transformers' configs are wide unions
        self.text: Any = text
        self.head = head
        self.tokenizer = tokenizer

    def forward(self, images: Float[Tensor, "b 3 h w"], prompts: list[str]) -> Float[Tensor, " b"]:
        """Scores; raises ValueError for images smaller than one patch, warns of long prompts."""
        config = self.vision.config
        check_size(images, config.patch_size, NAME)
        view = crop_to(images.to(self.head.weight), config.image_size, half_to_even=True)
        seen = self.vision(normalise(view)).last_hidden_state
        words = token_ids(self.tokenizer, prompts, WINDOW, NAME)
        states = self.text(
            words["input_ids"].to(seen.device),
            attention_mask=words["attention_mask"].to(seen.device),
            encoder_hidden_states=seen,
        ).last_hidden_state
        return (self.head(states[:, 0]).squeeze(-1) - MEAN) / STD


def convert(tensors: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """The original file's tensors by part (`vision`, `text`, `head`), with transformers' names.

    What belongs to none of them keeps its name in `rest`.
    """
    parts: dict[str, dict[str, Tensor]] = {"vision": {}, "text": {}, "head": {}, "rest": {}}
    for key, value in tensors.items():
        if _UNUSED.fullmatch(key):
            continue
        if key.startswith("blip.visual_encoder."):
            parts["vision"][_vision_name(key.removeprefix("blip.visual_encoder."))] = value
        elif key.startswith("blip.text_encoder."):
            parts["text"][key.removeprefix("blip.text_encoder.")] = value
        elif key.startswith("mlp.layers."):
            parts["head"][key] = value
        else:
            parts["rest"][key] = value
    return parts


def _vision_name(key: str) -> str:
    if key in _VISION:
        return _VISION[key]
    block = re.fullmatch(r"blocks\.(\d+)\.(.+)", key)
    whole, _, end = (block[2] if block else key).rpartition(".")
    name = f"{_VISION.get(whole, whole)}.{end}"
    return f"encoder.layers.{block[1]}.{name}" if block else name


def _layers(tensors: dict[str, Tensor], pattern: str) -> int:
    found = (re.match(pattern, key) for key in tensors)
    return 1 + max(int(match[1]) for match in found if match)


def _vision_config(tensors: dict[str, Tensor]) -> BlipVisionConfig:
    """The vision transformer that has these tensors; Raises KeyError where they are of none."""
    patches, width = tensors["embeddings.position_embedding"].shape[1:]
    patch = tensors["embeddings.patch_embedding.weight"].shape[-1]
    return BlipVisionConfig(
        hidden_size=width,
        intermediate_size=tensors["encoder.layers.0.mlp.fc1.weight"].shape[0],
        num_hidden_layers=_layers(tensors, r"encoder\.layers\.(\d+)"),
        num_attention_heads=max(1, width // HEAD_WIDTH),
        image_size=patch * math.isqrt(patches - 1),
        patch_size=patch,
        layer_norm_eps=1e-6,
    )


def _text_config(tensors: dict[str, Tensor]) -> BlipTextConfig:
    vocabulary, width = tensors["embeddings.word_embeddings.weight"].shape
    cross = tensors["encoder.layer.0.crossattention.self.key.weight"]
    return BlipTextConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        encoder_hidden_size=cross.shape[1],
        intermediate_size=tensors["encoder.layer.0.intermediate.dense.weight"].shape[0],
        num_hidden_layers=_layers(tensors, r"encoder\.layer\.(\d+)"),
        num_attention_heads=max(1, width // HEAD_WIDTH),
        max_position_embeddings=tensors["embeddings.position_embeddings.weight"].shape[0],
        layer_norm_eps=1e-12,
        is_decoder=True,  # what gives its layers cross attention
    )


def load_original(path: Path, tokenizer: BertTokenizer) -> ImageReward:
    """The model of an original file. Raises ValueError for a file that is not one."""
    parts = convert(read_checkpoint(path))
    if parts["rest"]:
        raise ValueError(f"{path} is not of ImageReward: it holds {next(iter(parts['rest']))!r}")
    try:
        vision = BlipVisionModel(_vision_config(parts["vision"]))
        text = BlipTextModel(_text_config(parts["text"]), add_pooling_layer=False)
    except (KeyError, ValueError) as error:
        raise ValueError(f"{path} is not of ImageReward: it lacks {error}") from error
    load = partial(fill, path=path)
    return ImageReward(
        load(vision, parts["vision"]),
        load(text, parts["text"]),
        fold(parts["head"], path),
        tokenizer,
    )


def load(argument: str | None, device) -> ImageReward:
    """The reward `image-reward`, frozen; `argument`: the original file, or a folder with it.

    BERT's vocabulary (`vocab.txt`) is looked for beside it first.

    Raises:
        FileNotFoundError: weights are not on this machine (says how to fetch them).
        ValueError: they are damaged or of something else, or an argument that is no path.
    """
    weights, words = sources(NAME)
    file, term, given = locate_file(NAME, weights, argument)
    tokenizer = BertTokenizer.from_pretrained(find(words, term, given))
    return load_original(file, tokenizer).to(device or "cpu")
