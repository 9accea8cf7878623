"""Assertions: one fact a question, and those that a scene states."""

from collections import Counter
from dataclasses import dataclass

from align.scenes.grammar import NUMBERS, PLURALS, Scene, SceneObject


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
