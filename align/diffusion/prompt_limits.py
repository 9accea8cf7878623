"""What a model cannot read of a prompt: words behind its window, words it never saw."""

import functools
import logging
import re
from collections.abc import Iterable
from typing import Any

from transformers import CLIPTokenizer

from align.diffusion.families.family import call_default

logger = logging.getLogger(__name__)

FEW_WORDS = 2000  # a tokenizer of fewer whole words knows no others; CLIP's own has 38,000


def warn_about_prompts(
    pipe: Any, prompts: Iterable[str], max_sequence_length: int | None = None
) -> None:
    """Log, once each, what `prompt_warnings` says."""
    for message in prompt_warnings(pipe, prompts, max_sequence_length):
        _warn(message)


def prompt_warnings(
    pipe: Any, prompts: Iterable[str], max_sequence_length: int | None = None
) -> list[str]:
    """What is cut off or unknown, a sentence each; nothing without a tokenizer.

    With several text encoders the longest window counts: what one of them reads is not lost.
    """
    windows = [
        (_window(pipe, part, max_sequence_length), part)
        for name, part in pipe.components.items()
        if name.startswith("tokenizer") and part is not None
    ]
    if not windows:
        return []
    window, tokenizer = max(windows, key=lambda pair: pair[0])
    words, warnings = _closed_vocabulary(tokenizer), []
    for prompt in dict.fromkeys(prompts):
        ids = tokenizer(prompt, verbose=False).input_ids
        cut = tokenizer.decode(ids[window - 1 :], skip_special_tokens=True).strip()
        if len(ids) > window and cut:
            sentence = f"The model reads {window} tokens; cut off from {_short(prompt)}: {cut!r}"
            warnings.append(sentence)
        unknown = [word for word in dict.fromkeys(_split(prompt)) if words and word not in words]
        if unknown:
            named = ", ".join(unknown)
            warnings.append(f"The model never saw these words of {_short(prompt)}: {named}")
    return warnings


def _window(pipe: Any, tokenizer: Any, max_sequence_length: int | None) -> int:
    if isinstance(tokenizer, CLIPTokenizer):
        return tokenizer.model_max_length
    return max_sequence_length or call_default(pipe, "max_sequence_length")


def _closed_vocabulary(tokenizer: Any) -> set[str]:
    """The words of a CLIP tokenizer made for a small world; empty for one that knows the rest."""
    if not isinstance(tokenizer, CLIPTokenizer):
        return set()
    ends = [token for token in tokenizer.get_vocab() if token.endswith("</w>")]
    words = {token.removesuffix("</w>") for token in ends}
    longer = [word for word in words if len(word) > 1]
    return words if 0 < len(longer) < FEW_WORDS else set()


def _split(prompt: str) -> list[str]:
    """Letters, single digits and runs of signs, as CLIP's tokenizer splits a prompt."""
    return re.findall(r"[^\W\d_]+|\d|[^\s\w]+", prompt.lower())


def _short(prompt: str) -> str:
    return repr(prompt if len(prompt) <= 60 else f"{prompt[:57]}...")


@functools.cache
def _warn(message: str) -> None:
    logger.warning(message)
