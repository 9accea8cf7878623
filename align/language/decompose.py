"""Prompts into yes/no assertions: what a picture must show, one fact at a time.

Davidsonian scene graphs and DA-Score (Singh & Zheng 2023) ask a language model for such lists; here
rules make them: the grammar for scenes prompts, `align.language.english` for other English. A
language model may still be given, and its answers are kept in a file.
"""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from align.language.assertions import Assertion, Thing, scene_assertions
from align.language.english import english_assertions
from align.runs.files import write_json
from align.scenes.grammar import parse

KINDS = ("object", "attribute", "relation", "count")
INSTRUCTION = (
    "Split this description of a picture into yes/no questions, one fact each, one a line, each "
    f"line as KIND: QUESTION with KIND one of {', '.join(KINDS)}.\nDescription: "
)


def decompose(
    prompt: str,
    *,
    llm: Callable[[str], str] | None = None,
    cache: str | Path | None = None,
) -> tuple[Assertion, ...]:
    """The assertions of a prompt, at least one.

    Args:
        prompt: a scenes prompt or an English description.
        llm: asked instead of the rules: gets an instruction that ends in the prompt, and returns
            one `KIND: QUESTION` a line.
        cache: a JSON file `{prompt: [question or assertion, ...]}` that is looked up first; what
            `llm` answers is added to it.

    Raises:
        ValueError: an empty prompt, a cache that is no such file, an answer of `llm` that cannot
            be read.
    """
    if not isinstance(prompt, str):
        raise TypeError(f"a prompt is a str, got {type(prompt).__name__}")
    if not prompt.strip():
        raise ValueError("cannot decompose an empty prompt")
    known = read_cache(cache) if cache is not None and Path(cache).exists() else {}
    if prompt in known:
        return known[prompt]
    if llm is not None:
        found = _read_answer(llm(INSTRUCTION + prompt))
        if cache is not None:
            write_cache(cache, known | {prompt: found})
        return found
    try:
        scene = parse(prompt)
    except ValueError:
        return english_assertions(prompt)
    return scene_assertions(scene)


def _read_answer(answer: str) -> tuple[Assertion, ...]:
    found = []
    for line in filter(None, map(str.strip, answer.split("\n"))):
        kind, colon, question = line.partition(":")
        if not colon or kind.strip().lower() not in KINDS or not question.strip():
            raise ValueError(f"expected KIND: QUESTION with KIND in {KINDS}, got {line!r}")
        found.append(Assertion(kind.strip().lower(), question.strip()))
    if not found:
        raise ValueError("the language model named no question")
    return tuple(dict.fromkeys(found))


def read_cache(path: str | Path) -> dict[str, tuple[Assertion, ...]]:
    """Prompts and their assertions from a JSON file; bare questions count as kind `object`."""
    try:
        stored = json.loads(Path(path).read_text(encoding="utf-8"))
        return {
            prompt: tuple(_read_entry(entry) for entry in entries)
            for prompt, entries in stored.items()
        }
    except (json.JSONDecodeError, AttributeError, TypeError, KeyError) as error:
        raise ValueError(
            f"{path} is no JSON file of prompts and their questions: {error}"
        ) from None


def _read_entry(entry: str | dict) -> Assertion:
    if isinstance(entry, str):
        return Assertion("object", entry)
    things = {
        key: Thing(entry[key]["noun"], tuple(entry[key]["attributes"]))
        for key in ("subject", "other")
        if entry.get(key)
    }
    return Assertion(**{**entry, **things})


def write_cache(path: str | Path, known: dict[str, tuple[Assertion, ...]]) -> None:
    """Write prompts and their assertions as `read_cache` reads them, atomically."""
    content = {
        prompt: [{k: v for k, v in asdict(a).items() if v is not None} for a in assertions]
        for prompt, assertions in known.items()
    }
    write_json(path, content)
