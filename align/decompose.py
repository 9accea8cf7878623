"""Prompts into yes/no assertions: what a picture must show, one fact at a time.

Davidsonian scene graphs and DA-Score (Singh & Zheng 2023) ask a language model for such lists; here
rules make them: the grammar for scenes prompts, `align.english` for other English. A language model
may still be given, and its answers are kept in a file.
"""

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from align.files import write_json
from align.scenes.grammar import NUMBERS, PLURALS, Scene, SceneObject, parse

KINDS = ("object", "attribute", "relation", "count")
INSTRUCTION = (
    "Split this description of a picture into yes/no questions, one fact each, one a line, each "
    f"line as KIND: QUESTION with KIND one of {', '.join(KINDS)}.\nDescription: "
)


@dataclass(frozen=True)
class Thing:
    """A noun with its attributes in reading order: `Thing("circle", ("striped", "red"))`."""

    noun: str
    attributes: tuple[str, ...] = ()

    def __str__(self) -> str:
        return " ".join([*self.attributes, self.noun])


@dataclass(frozen=True)
class Assertion:
    """One fact as a yes/no question; the answer yes means that it holds.

    The fields after `question` are None where a language model or a file gave the question alone.
    """

    kind: str
    question: str
    subject: Thing | None = None
    relation: str | None = None
    other: Thing | None = None
    count: int | None = None


def with_article(words: str) -> str:
    """`words` after a or an."""
    return f"{'an' if words[:1].lower() in 'aeiou' else 'a'} {words}"


def object_assertion(noun: str) -> Assertion:
    return Assertion("object", f"Is there {with_article(noun)}?", Thing(noun))


def attribute_assertion(thing: Thing, plural: str | None = None) -> Assertion:
    """`thing` exists; with `plural` (its plural noun), everything of its sort is like that."""
    if plural is None or len(thing.attributes) < 2:
        return Assertion("attribute", f"Is there {with_article(str(thing))}?", thing)
    first, *rest = thing.attributes
    return Assertion("attribute", f"Are all {' '.join([*rest, plural])} {first}?", thing)


def count_assertion(thing: Thing, count: int, plural: str, number: str) -> Assertion:
    if count == 1:
        return Assertion("count", f"Is there exactly {number} {thing}?", thing, count=1)
    named = " ".join([*thing.attributes, plural])
    return Assertion("count", f"Are there exactly {number} {named}?", thing, count=count)


def relation_assertion(subject: Thing, relation: str, other: Thing) -> Assertion:
    question = f"Is the {subject} {relation} the {other}?"
    return Assertion("relation", question, subject, relation, other)


def scene_assertions(scene: Scene) -> tuple[Assertion, ...]:
    """The facts that a prompt's scene states, each once, in the order of its objects.

    Per object: its shape is there, in its colour, in its texture and size if said; then counts,
    where a number was said or objects are alike; then relations.
    """
    found: list[Assertion] = []
    looks = Counter((o.color, o.shape) for o in scene.objects)
    for o in scene.objects:
        plural = PLURALS[o.shape] if looks[o.color, o.shape] > 1 else None
        found.append(object_assertion(o.shape))
        found.append(attribute_assertion(Thing(o.shape, (o.color,))))
        for attribute in (o.texture, o.size):
            if attribute:
                thing = Thing(o.shape, (attribute, o.color))
                found.append(attribute_assertion(thing, plural if _alike(scene, o) else None))
    for (color, shape), n in looks.items():
        if n > 1 or scene.counted:
            thing = Thing(shape, (color,))
            found.append(count_assertion(thing, n, PLURALS[shape], NUMBERS[n - 1]))
    for relation in scene.relations:
        a, b = (identify(scene.objects[i], looks) for i in (relation.first, relation.second))
        found.append(relation_assertion(a, relation.kind, b))
    return tuple(dict.fromkeys(found))


def _alike(scene: Scene, thing: SceneObject) -> bool:
    """Whether all objects of this colour and shape have the same texture and size."""
    same = {(o.texture, o.size) for o in scene.objects
            if (o.color, o.shape) == (thing.color, thing.shape)}  # fmt: skip
    return len(same) == 1


def identify(thing: SceneObject, looks: Counter) -> Thing:
    """The shortest description that tells an object from the others."""
    if looks[thing.color, thing.shape] == 1:
        return Thing(thing.shape, (thing.color,))
    words = (thing.size, thing.texture, thing.color)
    return Thing(thing.shape, tuple(word for word in words if word))


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
        from align.english import english_assertions

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
