"""Make the tokenizer of the embedded models: a CLIPTokenizer in which every scenes word is a token.

    python scripts/train_embedded/tokenizer.py

Byte-pair merges are learned from the words themselves until each is one token; other words still
tokenize, into bytes, as with any CLIP tokenizer.
"""

import json
from pathlib import Path

from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from align.scenes.grammar import COLORS, CONNECTORS, NUMBERS, PLURALS, SHAPES, SIZES, TEXTURES

OUT = Path(__file__).parents[2] / "align/embedded/scenes/tokenizer"
MAX_LENGTH = 32
# words of clips ("a red circle moving right") share the vocabulary
WORDS = {
    *COLORS, *SHAPES, *PLURALS.values(), *TEXTURES, *SIZES, *NUMBERS, "a", "an", "that", "is",
    "are", "in", "moving", "right", "left", "up", "down", "picture", "of", "no", "nothing",
    *" ".join(phrase for phrases in CONNECTORS.values() for phrase in phrases).split(),
}  # fmt: skip


def byte_alphabet() -> list[str]:
    """The printable stand-ins that CLIP's tokenizer uses for the 256 bytes, in its order."""
    return sorted(pre_tokenizers.ByteLevel.alphabet())


def learn_merges() -> list[tuple[str, str]]:
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    trainer = trainers.BpeTrainer(
        vocab_size=10_000, end_of_word_suffix="</w>", min_frequency=1, show_progress=False
    )
    tokenizer.train_from_iterator(sorted(WORDS), trainer)
    return [tuple(merge) for merge in json.loads(tokenizer.to_str())["model"]["merges"]]


def main() -> None:
    merges = learn_merges()
    alphabet = byte_alphabet()
    tokens = [*alphabet, *(letter + "</w>" for letter in alphabet)]
    tokens += list(dict.fromkeys(a + b for a, b in merges))
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    OUT.mkdir(parents=True, exist_ok=True)
    vocabulary = {token: index for index, token in enumerate(tokens)}
    (OUT / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False, indent=0))
    lines = ["#version: 0.2", *(f"{a} {b}" for a, b in merges)]
    (OUT / "merges.txt").write_text("\n".join(lines) + "\n")
    end = "<|endoftext|>"
    config = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": MAX_LENGTH,
        "bos_token": "<|startoftext|>",
        "eos_token": end,
        "unk_token": end,
        "pad_token": end,
        "add_prefix_space": False,
        "do_lower_case": True,
        "errors": "replace",
    }
    (OUT / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
    special = {key: config[key] for key in ("bos_token", "eos_token", "unk_token", "pad_token")}
    (OUT / "special_tokens_map.json").write_text(json.dumps(special, indent=2) + "\n")
    print(f"{len(tokens)} tokens, {len(WORDS)} words, written to {OUT}")


if __name__ == "__main__":
    main()
