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
    window, part = max(windows, key=lambda pair: pair[0])
    tokenizer = getattr(part, "tokenizer", part)  # of a processor that reads pictures as well
    window -= _around(pipe, part)
    words, warnings = _closed_vocabulary(tokenizer), []
    for prompt in dict.fromkeys(prompts):
        ids = tokenizer(prompt, verbose=False).input_ids
        last = ids[-1:] == [tokenizer.eos_token_id]  # which stays in the place of a word
        cut = tokenizer.decode(ids[window - last :], skip_special_tokens=True).strip()
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


def _around(pipe: Any, tokenizer: Any) -> int:
    """Tokens of the window that the pipeline's own words around a prompt take."""
    text, chat = "", [{"role": "user", "content": ""}]
    if hasattr(pipe, "prompt_template_encode_suffix"):  # Krea 2, where the rest is not counted
        text = pipe.prompt_template_encode_suffix
    elif hasattr(pipe, "prompt_template_encode"):  # Qwen-Image, likewise
        text = pipe.prompt_template_encode.partition("{}")[2]
    elif hasattr(pipe, "system_prompt"):  # Lumina 2
        text = f"{pipe.system_prompt} <Prompt Start> "
    elif hasattr(pipe, "system_message"):  # FLUX.2 dev
        said = (("system", pipe.system_message), ("user", ""))
        chat = [{"role": who, "content": [{"type": "text", "text": what}]} for who, what in said]
        text = tokenizer.apply_chat_template(chat, tokenize=False)
    elif getattr(tokenizer, "chat_template", None):  # Z-Image and FLUX.2 klein
        thinks = {"enable_thinking": type(pipe).__name__ == "ZImagePipeline"}
        text = tokenizer.apply_chat_template(
            chat, tokenize=False, add_generation_prompt=True, **thinks
        )
    words = getattr(tokenizer, "tokenizer", tokenizer)
    return len(words(text, add_special_tokens=False).input_ids) if text else 0


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
