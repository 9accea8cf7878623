"""Scores of HPSv3's own class on tiny weights, to `tests/golden/rewards/hpsv3.json`.

    pip install --target ENV --no-deps transformers==4.45.2 tokenizers==0.20.3 huggingface-hub==0.25.2
    pip download --no-deps hpsv3==1.0.0, unpacked into HPSV3
    PYTHONPATH=ENV python scripts/golden/hpsv3.py HPSV3/hpsv3/model/qwen2vl_trainer.py

Only the class is taken from the file, whose other imports are of training.
"""  # noqa: E501

import ast
import json
import sys
from pathlib import Path

import torch
from common import GOLDEN, load
from formula import numbers
from torch import nn
from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

ROWS, IMAGE, SIZES = 40, 37, ((2, 2), (8, 6))  # words, the picture's one, patches down and across
CONFIG = {
    "vocab_size": ROWS, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512,
    "rope_theta": 1e4, "rope_scaling": {"type": "mrope", "mrope_section": [2, 1, 1]},
    "tie_word_embeddings": False, "image_token_id": IMAGE, "video_token_id": 38,
    "vision_start_token_id": 35, "vision_end_token_id": 36, "pad_token_id": 0,
    "vision_config": {
        "depth": 3, "embed_dim": 32, "hidden_size": 32, "mlp_ratio": 2, "num_heads": 2,
        "patch_size": 14, "spatial_merge_size": 2, "temporal_patch_size": 2,
    },
}  # fmt: skip


def words(down: int, across: int) -> list[int]:
    """A question: words, the picture, words, the head's token, words."""
    text = [1 + (7 * i) % 30 for i in range(40)]
    return [*text[:5], 35, *[IMAGE] * (down * across // 4), 36, *text, ROWS - 1, *text[3:9]]


def main(path: str) -> None:
    from typing import Optional

    tree = ast.parse(Path(path).read_text())
    kind = [n for n in tree.body if getattr(n, "name", "") == "Qwen2VLRewardModelBT"]
    space = {
        "torch": torch, "nn": nn, "Optional": Optional, "List": list,
        "Qwen2VLForConditionalGeneration": Qwen2VLForConditionalGeneration,
    }  # fmt: skip
    exec(compile(ast.Module(kind, []), path, "exec"), space)
    model = space["Qwen2VLRewardModelBT"](
        Qwen2VLConfig(**CONFIG, attn_implementation="eager"),
        output_dim=2,
        special_token_ids=[ROWS - 1],
        rm_head_type="ranknet",
    )
    shapes = load(model)
    rows = []
    for down, across in SIZES:
        with torch.no_grad():
            rows += model(
                input_ids=torch.tensor([words(down, across)]),
                attention_mask=torch.ones(1, len(words(down, across)), dtype=torch.long),
                pixel_values=numbers("patches", (down * across, 1176)).float(),
                image_grid_thw=torch.tensor([[1, down, across]]),
                return_dict=True,
            )["logits"].tolist()
    content = {"shapes": shapes, "scores": rows, "questions": [words(*size) for size in SIZES],
               "patches": SIZES, "config": CONFIG}  # fmt: skip
    (GOLDEN / "hpsv3.json").write_text(json.dumps(content))


if __name__ == "__main__":
    main(*sys.argv[1:])
