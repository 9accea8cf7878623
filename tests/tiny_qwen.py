"""Tiny Qwen-VLs in the layout in which they are published, weights from `formula.weights`."""

import json
from pathlib import Path

from formula import weights
from safetensors.torch import save_file
from tiny_rewards import filled, golden
from transformers import (
    AutoModelForImageTextToText,
    Qwen2_5_VLConfig,
    Qwen2Tokenizer,
    Qwen2VLConfig,
    Qwen3VLConfig,
)

SPECIAL = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>",
    "<|image_pad|>", "<|video_pad|>",
)  # fmt: skip
MERGES = ["Y e", "Ye s", "y e", "ye s", "\u0120 Yes", "\u0120 yes", "N o", "n o", "\u0120 No",
          "\u0120 no"]  # fmt: skip
# As published: Qwen2 and 2.5 put a system line first, 3 does not.
SYSTEM = (
    "{% if loop.first %}<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
)
TEMPLATE = (
    "{% for m in messages %}SYSTEM<|im_start|>{{ m['role'] }}\n{% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% else %}{{ c['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TEXT = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 512, "tie_word_embeddings": False,
    "bos_token_id": None, "eos_token_id": None,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]},
}  # fmt: skip
VISION = {"depth": 3, "num_heads": 2, "spatial_merge_size": 2, "temporal_patch_size": 2}
KINDS = {
    "qwen2_vl": (
        Qwen2VLConfig, {"embed_dim": 32, "hidden_size": 32, "mlp_ratio": 2, "patch_size": 14}, {}
    ),
    "qwen2_5_vl": (
        Qwen2_5_VLConfig,
        {"hidden_size": 32, "out_hidden_size": 32, "intermediate_size": 48, "patch_size": 14,
         "window_size": 56, "fullatt_block_indexes": [1]}, {},
    ),
    "qwen3_vl": (
        Qwen3VLConfig,
        {"hidden_size": 32, "out_hidden_size": 32, "intermediate_size": 48, "patch_size": 16,
         "num_position_embeddings": 16, "deepstack_visual_indexes": [0, 1]}, {"head_dim": 8},
    ),
}  # fmt: skip


def tokenizer() -> Qwen2Tokenizer:
    letters = sorted(_bytes().values())
    words = [*letters, *(merge.replace(" ", "") for merge in MERGES)]
    made = Qwen2Tokenizer(
        vocab={word: i for i, word in enumerate(words)},
        merges=[tuple(merge.split(" ")) for merge in MERGES],
        unk_token=None, eos_token=SPECIAL[2], pad_token=SPECIAL[0],
        extra_special_tokens=list(SPECIAL[1:]),
    )  # fmt: skip
    return made


def _bytes() -> dict[int, str]:
    """GPT-2's letters for bytes."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [byte for byte in range(256) if byte not in plain]
    return {b: chr(b) for b in plain} | {b: chr(256 + i) for i, b in enumerate(rest)}


def save_qwen(folder: Path, kind: str = "qwen3_vl", penalty: float = 1.0) -> Path:
    """A whole folder of a kind of Qwen-VL."""
    words = tokenizer()
    words.chat_template = TEMPLATE.replace("SYSTEM", "" if kind == "qwen3_vl" else SYSTEM)
    known = words.get_vocab()
    config, vision, text = KINDS[kind]
    marks = {
        "image_token_id": known["<|image_pad|>"], "video_token_id": known["<|video_pad|>"],
        "vision_start_token_id": known["<|vision_start|>"],
        "vision_end_token_id": known["<|vision_end|>"],
    }  # fmt: skip
    made = config(
        text_config=TEXT | text | {"vocab_size": len(words) + 3},
        vision_config=VISION | vision,
        tie_word_embeddings=False,
        **marks,
    )
    filled(AutoModelForImageTextToText.from_config(made)).save_pretrained(folder)
    words.save_pretrained(folder)
    step = 2 * vision["patch_size"]
    plain = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3} if kind == "qwen3_vl" else {}
    (folder / "preprocessor_config.json").write_text(
        json.dumps(
            {"patch_size": vision["patch_size"], "merge_size": 2, "temporal_patch_size": 2,
             "size": {"shortest_edge": step**2, "longest_edge": 6 * step**2}} | plain
        )
    )  # fmt: skip
    (folder / "generation_config.json").write_text(json.dumps({"repetition_penalty": penalty}))
    return folder


def save_hpsv3(folder: Path) -> None:
    """HPSv3's file, with the shapes of its own class but for the words, and Qwen2-VL's files."""
    words = folder / "Qwen/Qwen2-VL-7B-Instruct"
    save_qwen(words, "qwen2_vl")
    (words / "model.safetensors").unlink()
    shapes = golden("hpsv3")["shapes"]
    for key in ("model.embed_tokens.weight", "lm_head.weight"):
        shapes[key] = [len(tokenizer()) + 1, 32]  # the head's token was added
    file = folder / "MizzenAI/HPSv3/HPSv3.safetensors"
    file.parent.mkdir(parents=True)
    save_file(weights(shapes), file)
