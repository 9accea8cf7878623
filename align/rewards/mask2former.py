"""Mask2Former (arXiv 2112.01527) for GenEval: mmdet's checkpoint on transformers' class, and its
objects as mmdet reports them.

`convert` maps the original's keys one by one; transformers lacks none and has two more that are
not used. Objects: p = softmax over classes and none; of the 100 best pairs of query and class, the
score is p times the mean of sigmoid(m) where m > 0, the box spans m > 0. As a score is p at most,
only pairs with p above the threshold need a mask.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn
from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation, SwinConfig

from align.rewards.resize import IMAGENET_MEAN, IMAGENET_STD, normalise
from align.rewards.slopes import to_bytes
from align.rewards.weights import fill, read_checkpoint

LONG, SHORT = 1333, 800  # pixels of the longer and the shorter side, at most
STEP = 32
GREY = 128 / 255  # what fills up a picture
PAIRS = 100
MOST = 16  # objects of a class

_PIXEL, _TRANSFORMER = "model.pixel_level_module.", "model.transformer_module."
_SWIN, _DECODER = _PIXEL + "encoder.swin.", _PIXEL + "decoder."
_HEAD = "panoptic_head."
# The original's names, where `{}` are numbers, and transformers' names for them.
_NAMES = {
    "backbone.patch_embed.projection": _SWIN + "embeddings.patch_embeddings.projection",
    "backbone.patch_embed.norm": _SWIN + "embeddings.norm",
    "backbone.stages.{}.downsample.norm": _SWIN + "encoder.layers.{}.downsample.norm",
    "backbone.stages.{}.downsample.reduction": _SWIN + "encoder.layers.{}.downsample.reduction",
    **{
        f"backbone.stages.{{}}.blocks.{{}}.{theirs}": f"{_SWIN}encoder.layers.{{}}.blocks.{{}}.{o}"
        for theirs, o in {
            "norm1": "layernorm_before",
            "norm2": "layernorm_after",
            "attn.w_msa.proj": "attention.o_proj",
            "attn.w_msa.relative_position_bias_table":
                "attention.relative_position_bias.relative_position_bias_table",
            "ffn.layers.0.0": "mlp.fc1",
            "ffn.layers.1": "mlp.fc2",
        }.items()
    },
    **{
        f"{_HEAD}pixel_decoder.{theirs}": _DECODER + ours
        for theirs, ours in {
            "input_convs.{}.conv": "input_projections.{}.0",
            "input_convs.{}.gn": "input_projections.{}.1",
            "lateral_convs.0.conv": "adapter_1.0",
            "lateral_convs.0.gn": "adapter_1.1",
            "output_convs.0.conv": "layer_1.0",
            "output_convs.0.gn": "layer_1.1",
            "mask_feature": "mask_projection",
            "level_encoding.weight": "level_embed",
            "encoder.layers.{}.attentions.0.sampling_offsets":
                "encoder.layers.{}.self_attn.sampling_offsets",
            "encoder.layers.{}.attentions.0.attention_weights":
                "encoder.layers.{}.self_attn.attention_weights",
            "encoder.layers.{}.attentions.0.value_proj": "encoder.layers.{}.self_attn.value_proj",
            "encoder.layers.{}.attentions.0.output_proj": "encoder.layers.{}.self_attn.output_proj",
            "encoder.layers.{}.ffns.0.layers.0.0": "encoder.layers.{}.fc1",
            "encoder.layers.{}.ffns.0.layers.1": "encoder.layers.{}.fc2",
            "encoder.layers.{}.norms.0": "encoder.layers.{}.self_attn_layer_norm",
            "encoder.layers.{}.norms.1": "encoder.layers.{}.final_layer_norm",
        }.items()
    },
    **{
        f"{_HEAD}transformer_decoder.layers.{{}}.{t}": f"{_TRANSFORMER}decoder.layers.{{}}.{ours}"
        for t, ours in {
            "attentions.0.attn.in_proj_weight": "cross_attn.in_proj_weight",
            "attentions.0.attn.in_proj_bias": "cross_attn.in_proj_bias",
            "attentions.0.attn.out_proj": "cross_attn.out_proj",
            "attentions.1.attn.out_proj": "self_attn.out_proj",
            "ffns.0.layers.0.0": "fc1",
            "ffns.0.layers.1": "fc2",
            "norms.0": "cross_attn_layer_norm",
            "norms.1": "self_attn_layer_norm",
            "norms.2": "final_layer_norm",
        }.items()
    },
    _HEAD + "transformer_decoder.post_norm": _TRANSFORMER + "decoder.layernorm",
    _HEAD + "query_embed": _TRANSFORMER + "queries_embedder",
    _HEAD + "query_feat": _TRANSFORMER + "queries_features",
    _HEAD + "level_embed": _TRANSFORMER + "level_embed",
    _HEAD + "cls_embed": "class_predictor",
}  # fmt: skip
_THIRDS = {
    "backbone.stages.{}.blocks.{}.attn.w_msa.qkv.":
        _SWIN + "encoder.layers.{}.blocks.{}.attention.",
    _HEAD + "transformer_decoder.layers.{}.attentions.1.attn.in_proj_":
        _TRANSFORMER + "decoder.layers.{}.self_attn.",
}  # fmt: skip


def convert(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """mmdet's tensors under transformers' names; those that no training gave are left out.

    Raises ValueError for a key that has no place.
    """
    made: dict[str, Tensor] = {}
    for key, value in tensors.items():
        if key.endswith("relative_position_index") or ".loss_" in key:
            continue
        for name, part in _places(key, value):
            made[name] = part
    return made


def _places(key: str, value: Tensor) -> Iterator[tuple[str, Tensor]]:
    for theirs, ours in _THIRDS.items():
        found = re.fullmatch(_pattern(theirs) + r"(weight|bias)", key)
        if found:
            for letter, third in zip("qkv", value.chunk(3), strict=True):
                *at, last = found.groups()
                yield f"{ours.format(*at)}{letter}_proj.{last}", third
            return
    norm = re.fullmatch(r"backbone\.norm(\d)\.(weight|bias)", key)
    if norm:
        yield f"{_PIXEL}encoder.hidden_states_norms.stage{int(norm[1]) + 1}.{norm[2]}", value
        return
    mask = re.fullmatch(r"panoptic_head\.mask_embed\.([024])\.(weight|bias)", key)
    if mask:
        place = f"decoder.mask_predictor.mask_embedder.{int(mask[1]) // 2}.0.{mask[2]}"
        yield _TRANSFORMER + place, value
        return
    for theirs, ours in _NAMES.items():
        found = re.fullmatch(_pattern(theirs) + r"(\.weight|\.bias|)", key)
        if found:
            *at, end = found.groups()
            yield ours.format(*at) + end, _merged(value) if ".downsample." in key else value
            return
    raise ValueError(f"{key} is no key of mmdet's Mask2Former with a Swin")


def _pattern(name: str) -> str:
    return re.escape(name).replace(re.escape("{}"), r"(\d+)")


def _merged(value: Tensor) -> Tensor:
    """Four neighbours' channels: mmdet has a channel's four together, (down, across); transformers
    has one neighbour's channels together, in the order (0, 0), (1, 0), (0, 1), (1, 1)."""
    apart = value.unflatten(-1, (-1, 2, 2))  # channel, down, across
    return apart.movedim(-3, -1).transpose(-3, -2).flatten(-3)


def load_mmdet(path: Path) -> Mask2FormerForUniversalSegmentation:
    """The detector of a checkpoint of mmdet, frozen; its sizes are those of its tensors.

    Raises ValueError for a file that is damaged or something else.
    """
    tensors = read_checkpoint(path)
    if f"{_HEAD}query_feat.weight" not in tensors:
        raise ValueError(f"{path} is no Mask2Former of mmdet: it lacks {_HEAD}query_feat.weight")
    made = convert(tensors)
    model = Mask2FormerForUniversalSegmentation(_config(made))
    rest = model.state_dict()
    for name in (f"{_SWIN}layernorm.weight", f"{_SWIN}layernorm.bias", "criterion.empty_weight"):
        made[name] = rest[name]  # unused
    return fill(model, made, path)


def _config(made: dict[str, Tensor]) -> Mask2FormerConfig:
    blocks = [re.match(rf"{_SWIN}encoder\.layers\.(\d+)\.blocks\.(\d+)\.", key) for key in made]
    places = {(int(found[1]), int(found[2])) for found in blocks if found}
    stages = max(stage for stage, _ in places) + 1
    tables = [
        made[f"{_SWIN}encoder.layers.{i}.blocks.0.attention.relative_position_bias"
             ".relative_position_bias_table"].shape for i in range(stages)
    ]  # fmt: skip

    def count(prefix: str) -> int:
        found = [re.match(rf"{prefix}(\d+)\.", key) for key in made]
        return max(int(one[1]) for one in found if one) + 1

    def rows(name: str) -> int:
        return made[name].shape[0]

    classes = rows("class_predictor.weight") - 1
    first = f"{_SWIN}encoder.layers.0.blocks.0."
    width = rows(f"{_SWIN}embeddings.norm.weight")
    queries, hidden = made[f"{_TRANSFORMER}queries_features.weight"].shape
    attention = f"{_DECODER}encoder.layers.0.self_attn.attention_weights.weight"
    swin: Any = SwinConfig  # which hides that it takes stages
    backbone = swin(
        embed_dim=width,
        depths=[len([b for s, b in places if s == i]) for i in range(stages)],
        num_heads=[heads for _, heads in tables],
        window_size=(round(tables[0][0] ** 0.5) + 1) // 2,
        mlp_ratio=rows(f"{first}mlp.fc1.weight") / width,
        out_features=[f"stage{i + 1}" for i in range(stages)],
    )
    return Mask2FormerConfig(
        backbone_config=backbone,
        feature_size=rows(f"{_DECODER}adapter_1.0.weight"),
        mask_feature_size=rows(f"{_DECODER}mask_projection.weight"),
        hidden_dim=hidden,
        encoder_feedforward_dim=rows(f"{_DECODER}encoder.layers.0.fc1.weight"),
        encoder_layers=count(f"{_DECODER}encoder.layers."),
        decoder_layers=count(f"{_TRANSFORMER}decoder.layers.") + 1,
        num_attention_heads=rows(attention) // 12,  # of three levels with four points
        dim_feedforward=rows(f"{_TRANSFORMER}decoder.layers.0.fc1.weight"),
        num_queries=queries,
        id2label={i: str(i) for i in range(classes)},
    )


@dataclass(frozen=True)
class Seen:
    """What the detector says of one picture.

    Attributes:
        logits: of each query's class, the last one none.
        masks: logits of each query's mask on a quarter of the padded size.
        padded, inner, size: height and width with padding, resized, of the picture.
    """

    logits: Float[Tensor, "q c"]
    masks: Float[Tensor, "q mh mw"]
    padded: tuple[int, int]
    inner: tuple[int, int]
    size: tuple[int, int]

    def at_size(self, queries: Tensor) -> Float[Tensor, "n h w"]:
        """Mask logits of these queries at the picture's size."""
        masks = self.masks[queries][None]
        masks = F.interpolate(masks, self.padded, mode="bilinear", align_corners=False)
        masks = masks[..., : self.inner[0], : self.inner[1]]
        return F.interpolate(masks, self.size, mode="bilinear", align_corners=False)[0]


@dataclass(frozen=True)
class Thing:
    """An object that was found: its box (x0, y0, x1, y1) in pixels, and its mask."""

    score: float
    box: tuple[float, float, float, float]
    mask: Bool[Tensor, "h w"] | None = None


class Mask2Former(nn.Module):
    """Classes and masks of a picture."""

    def __init__(self, model: Any):
        super().__init__()
        self.model = model

    def forward(self, picture: Float[Tensor, "1 3 h w"], *, in_bytes: bool = False) -> Seen:
        """`in_bytes`: the resized picture is rounded, as the original resizes bytes."""
        weight = self.model.class_predictor.weight
        height, width = picture.shape[-2:]
        inner = view_size(height, width)
        view = picture.to(weight)
        if inner != (height, width):
            view = F.interpolate(view, inner, mode="bilinear", align_corners=False)
        view = to_bytes(view) if in_bytes else view
        down, across = (-side % STEP for side in inner)
        view = F.pad(view, (0, across, 0, down), value=GREY)
        seen = self.model(pixel_values=normalise(view, IMAGENET_MEAN, IMAGENET_STD))
        padded = (inner[0] + down, inner[1] + across)
        return Seen(
            seen.class_queries_logits[0], seen.masks_queries_logits[0], padded, inner,
            (height, width),
        )  # fmt: skip


def view_size(height: int, width: int) -> tuple[int, int]:
    """Height and width after the resize."""
    long, short = max(height, width), min(height, width)
    scale = min(LONG / long, SHORT / short)
    return int(height * scale + 0.5), int(width * scale + 0.5)


@torch.no_grad()
def find_objects(seen: Seen, threshold: float) -> dict[int, list[Thing]]:
    """The objects above a threshold by class, at most 16 of each, the surest first."""
    p = seen.logits.softmax(-1)[:, :-1]
    best, pairs = p.flatten().topk(min(PAIRS, p.numel()))
    chosen = pairs[best > threshold]
    queries, classes = chosen // p.shape[1], chosen % p.shape[1]
    found: dict[int, list[Thing]] = {}
    if not len(chosen):
        return found
    masks = seen.at_size(queries)
    scores = p[queries, classes] * mask_scores(masks)
    for index in scores.argsort(descending=True).tolist():
        things = found.setdefault(int(classes[index]), [])
        if scores[index] > threshold and len(things) < MOST:
            mask = masks[index] > 0
            things.append(Thing(scores[index].item(), box_of(mask), mask))
    return {name: things for name, things in found.items() if things}


def mask_scores(masks: Float[Tensor, "n h w"]) -> Float[Tensor, " n"]:
    """The mean of sigmoid(m) where m > 0; the choice of pixels has no gradient."""
    inside = (masks > 0).to(masks.dtype)
    return (masks.sigmoid() * inside).sum((1, 2)) / (inside.sum((1, 2)) + 1e-6)


def box_of(mask: Bool[Tensor, "h w"]) -> tuple[float, float, float, float]:
    """(x0, y0, x1 + 1, y1 + 1) of a mask, zeros for an empty one."""
    down, across = mask.any(1).nonzero().flatten(), mask.any(0).nonzero().flatten()
    if not len(down):
        return 0.0, 0.0, 0.0, 0.0
    x, y = across[[0, -1]].tolist(), down[[0, -1]].tolist()
    return float(x[0]), float(y[0]), float(x[1] + 1), float(y[1] + 1)
