"""Published NAR checkpoints (github.com/ThisisBillhe/NAR) as our models, key by key.

`model.save_pretrained(folder)` then keeps them in our format.
"""

import re
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file
from torch import Tensor

from align.nar.model import NARTransformer2DModel, NARTransformer3DModel

Task = Literal["class", "text", "video"]

# what a checkpoint may hold beside weights: caches, tables and statistics that are rebuilt
_IGNORED = re.compile(r"(^|\.)(kv_cache|codebook_used|freqs_cis|proximity_mask|diagonal_mask)\b")

_BLOCK = {
    "attention.wqkv.weight": "attention.qkv.weight",
    "attention.wo.weight": "attention.out.weight",
    "feed_forward.w1.weight": "ffn.gate.weight",
    "feed_forward.w3.weight": "ffn.up.weight",
    "feed_forward.w2.weight": "ffn.down.weight",
    "attention_norm.weight": "attention_norm.weight",
    "ffn_norm.weight": "ffn_norm.weight",
}
_IMAGE = {
    "tok_embeddings.weight": "token_embedding.weight",
    "norm.weight": "head_norms.0.weight",
    "output.weight": "head_outputs.0.weight",
    "medusa_norm.weight": "head_norms.1.weight",
    "medusa_output.weight": "head_outputs.1.weight",
}
_TOP = {
    "class": _IMAGE | {"cls_embedding.embedding_table.weight": "class_embedding.weight"},
    "text": _IMAGE
    | {
        "cls_embedding.cap_proj.fc1.weight": "text_projection.fc1.weight",
        "cls_embedding.cap_proj.fc2.weight": "text_projection.fc2.weight",
        "cls_embedding.uncond_embedding": "null_condition",
    },
    "video": {
        "tok_embeddings.weight": "token_embedding.weight",
        "cls_embedding.embedding_table.weight": "class_embedding.weight",
        "abs_pe": "position_embedding",
        # along rows (right), then down, then through time (back), each a block further
        **{
            f"{kind}_{axis}.weight": f"head_{kind}s.{head}.weight"
            for kind in ("norm", "output")
            for head, axis in enumerate("RDB")
        },
    },
}


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a .safetensors, or a .pt/.pth file that holds nothing but tensors and containers.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file pickles other objects, which could run code on loading.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {path}")
    if path.suffix == ".safetensors":
        return load_file(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:
        raise ValueError(
            f"{path} is not a plain file of tensors (weights_only loading refused it); "
            "convert it to safetensors where it comes from"
        ) from error


def unwrap(checkpoint: dict[str, Any]) -> dict[str, Tensor]:
    """The bare state dict inside the wrappings that trainers leave around it."""
    for key in ("model", "module", "state_dict", "sd"):
        inner = checkpoint.get(key)
        if isinstance(inner, dict):
            return unwrap(inner)
    return {k: v for k, v in checkpoint.items() if not _IGNORED.search(k)}


def load_reference(
    path_or_state_dict: str | Path | dict[str, Any],
    *,
    task: Task = "class",
    num_heads: int,
    grid_shape: tuple[int, ...],
    num_condition_tokens: int = 1,
    decoding: Literal["wavefront", "raster"] = "wavefront",
) -> NARTransformer2DModel:
    """Load a published checkpoint; sizes that its tensors tell are read from them.

    Args:
        path_or_state_dict: a file, or its content (wrapped by a trainer or bare).
        task: "class" (ImageNet), "text" (text-to-image) or "video" (UCF-101).
        num_heads: attention heads (B 12, M and L 16, XL 20, XXL 24; video L 16, LP 20).
        grid_shape: (rows, columns), or (time, rows, columns) for video.
        num_condition_tokens: 1, or 120 for the published text-to-image model.
        decoding: "raster" reads a LlamaGen checkpoint, which has one head (not of video).

    Raises:
        FileNotFoundError: no such file.
        ValueError: an unknown task, or keys or shapes that differ (the first ones are named).
    """
    if task not in _TOP:
        raise ValueError(f"task {task!r}: must be one of {', '.join(_TOP)}")
    if task == "video" and decoding == "raster":
        raise ValueError("task 'video' has no raster checkpoints; take 'class' or 'text'")
    if not isinstance(path_or_state_dict, dict):
        path_or_state_dict = read_checkpoint(path_or_state_dict)
    source = unwrap(path_or_state_dict)
    heads = 3 if task == "video" else 1 if decoding == "raster" else 2
    blocks = 1 + max(
        (int(m[1]) for k in source if (m := re.match(r"layers\.(\d+)\.", k))), default=heads - 1
    )
    top = {k: v for k, v in _TOP[task].items() if heads > 1 or not k.startswith("medusa_")}
    names = top | {
        f"layers.{i}.{theirs}": f"blocks.{i}.{ours}"
        for i in range(max(blocks, heads))
        for theirs, ours in _BLOCK.items()
    }
    check_keys(source, names)
    embedding = source["tok_embeddings.weight"]
    config: dict[str, Any] = {
        "grid_shape": tuple(grid_shape),
        "vocab_size": embedding.shape[0],
        "width": embedding.shape[1],
        "num_layers": blocks - (heads - 1),
        "num_heads": num_heads,
        "ffn_width": source["layers.0.feed_forward.w1.weight"].shape[0],
        "num_condition_tokens": num_condition_tokens,
        "position": "learned" if task == "video" else "rope",
        "decoding": decoding,
    }
    if task == "text":
        config["condition"] = "text"
        config["condition_width"] = source["cls_embedding.uncond_embedding"].shape[-1]
    else:
        table = source["cls_embedding.embedding_table.weight"]
        config["num_classes"] = table.shape[0] - 1
    model = (NARTransformer3DModel if task == "video" else NARTransformer2DModel)(**config)
    mapped = {names[key]: value for key, value in source.items()}
    if task == "video":
        mapped["position_embedding"] = mapped["position_embedding"].squeeze(0)
    check_shapes(mapped, model.state_dict(), {ours: theirs for theirs, ours in names.items()})
    model.load_state_dict(mapped)
    return model.eval()


def check_keys(source: dict[str, Tensor], names: dict[str, str]) -> None:
    """ValueError naming the first keys of `names` that are missing, or beyond them."""
    missing = [key for key in names if key not in source]
    unexpected = [key for key in source if key not in names]
    if missing or unexpected:
        parts = []
        if missing:
            parts.append(f"missing {_first(missing)}")
        if unexpected:
            parts.append(f"unexpected {_first(unexpected)}")
        raise ValueError(f"the checkpoint's keys do not fit: {'; '.join(parts)}")


def check_shapes(mapped: dict[str, Tensor], own: dict[str, Tensor], theirs: dict[str, str]) -> None:
    """ValueError naming, as `theirs` calls them, the first tensors of another shape."""
    wrong = [
        f"{theirs[key]} is {list(value.shape)}, expected {list(own[key].shape)}"
        for key, value in mapped.items()
        if value.shape != own[key].shape
    ]
    if wrong:
        raise ValueError(f"the checkpoint is of another size: {_first(wrong)}")


def _first(items: list[str], shown: int = 3) -> str:
    more = f" and {len(items) - shown} more" if len(items) > shown else ""
    return ", ".join(items[:shown]) + more
