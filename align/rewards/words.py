"""Prompts to token ids for reward models, with a warning where a prompt does not fit."""

import html
import re
import warnings
from typing import Any

from torch import Tensor


def token_ids(
    tokenizer: Any, prompts: list[str], length: int, name: str, *, padding: str = "longest"
) -> dict[str, Tensor]:
    """`input_ids` and `attention_mask`, [b, longest], cut to `length` tokens.

    What is cut is said in a warning, once for each prompt; `padding="max_length"` fills all rows up
    to `length`.
    """
    for prompt in dict.fromkeys(prompts):
        count = len(tokenizer(prompt).input_ids)
        if count > length:
            start = prompt if len(prompt) <= 40 else f"{prompt[:40]}…"
            warnings.warn(
                f"{name} reads {length} tokens, {start!r} has {count}: its end is not read",
                stacklevel=3,
            )
    return dict(
        tokenizer(prompts, padding=padding, truncation=True, max_length=length, return_tensors="pt")
    )


def clean(prompt: str) -> str:
    """A prompt as OpenCLIP's tokenizer takes it: HTML entities resolved, white space single."""
    return re.sub(r"\s+", " ", html.unescape(html.unescape(prompt))).strip()
