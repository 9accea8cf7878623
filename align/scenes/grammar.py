"""The language of the scenes world: scenes, prompts, held-out combinations.

A prompt states some facts about a picture; everything unsaid is free. `parse` reads a prompt into a
`Scene`, `describe` writes a scene as a prompt, and both agree in every form:
`parse(describe(scene, rng)) == scene`.
"""

import hashlib
import random
import re
from dataclasses import dataclass, replace

COLORS = {
    "red": (220, 40, 40),
    "green": (40, 170, 60),
    "blue": (40, 80, 220),
    "yellow": (240, 210, 40),
    "purple": (140, 50, 170),
    "orange": (245, 140, 30),
    "cyan": (60, 200, 220),
    "black": (25, 25, 25),
}
SHAPES = ("circle", "square", "triangle", "star", "cross", "ring")
TEXTURES = ("solid", "striped", "checkered")
SIZES = ("small", "large")
CATEGORIES = (
    "single", "color", "shape", "texture", "size",
    "2d_spatial", "3d_spatial", "numeracy", "complex",
)  # fmt: skip

NUMBERS = ("one", "two", "three", "four")
PLURALS = {"cross": "crosses"} | {s: s + "s" for s in SHAPES if s != "cross"}
SINGULARS = {plural: shape for shape, plural in PLURALS.items()}

# The main form first; an empty relation only lists two objects side by side.
CONNECTORS = {
    "": ("and", "with", "next to"),
    "left of": ("to the left of", "left of", "on the left of"),
    "right of": ("to the right of", "right of", "on the right of"),
    "above": ("above", "over", "on top of"),
    "below": ("below", "under", "beneath"),
    "in front of": ("in front of", "covering"),
    "behind": ("behind", "partly hidden by"),
}
RELATIONS_2D = ("left of", "right of", "above", "below")
RELATIONS_3D = ("in front of", "behind")


@dataclass(frozen=True)
class SceneObject:
    """One object. `None` means unsaid (in a prompt) or not yet placed (by `render.layout`)."""

    color: str
    shape: str
    texture: str | None = None
    size: str | None = None
    x: float | None = None  # centre, pixels from the left edge
    y: float | None = None  # centre, pixels from the top edge
    r: float | None = None  # radius in pixels
    depth: int | None = None  # 0 is rearmost; a nearer object covers a farther one


@dataclass(frozen=True)
class Relation:
    """`objects[first]` stands in relation `kind` to `objects[second]`."""

    first: int
    kind: str
    second: int


@dataclass(frozen=True)
class Scene:
    """What a prompt states, or, after `render.layout`, what a picture shows."""

    objects: tuple[SceneObject, ...]
    relations: tuple[Relation, ...] = ()
    counted: bool = False  # "one red circle" rather than "a red circle"
    background: int | None = None  # grey level, 225 to 245


# --- prompts to scenes -------------------------------------------------------------------------


class _Reader:
    """A cursor over the words of a prompt that knows how to complain."""

    def __init__(self, prompt: str):
        self.prompt = prompt
        self.words = re.findall(r"[^\s]+", prompt)
        self.at = 0

    def peek(self) -> str | None:
        return self.words[self.at] if self.at < len(self.words) else None

    def take(self, allowed) -> str | None:
        if self.peek() in allowed:
            self.at += 1
            return self.words[self.at - 1]
        return None

    def take_phrase(self, phrase: str) -> bool:
        words = phrase.split()
        if self.words[self.at : self.at + len(words)] == words:
            self.at += len(words)
            return True
        return False

    def need(self, allowed, what: str) -> str:
        word = self.take(allowed)
        if word is None:
            self.fail(what)
        return word

    def fail(self, expected: str):
        found = f"cannot read {self.peek()!r}" if self.peek() else "the prompt ends too soon"
        raise ValueError(f"{found} in scene prompt {self.prompt!r}: expected {expected}")


def _read_object(reader: _Reader) -> tuple[SceneObject, int, bool]:
    """Read `a [size] [texture] COLOUR SHAPE` in any form; return (object, count, counted)."""
    first = reader.need(("a", "an", *NUMBERS), f"a, an or one of {', '.join(NUMBERS)}")
    counted = first in NUMBERS
    count = NUMBERS.index(first) + 1 if counted else 1
    size = reader.take(SIZES)
    texture = reader.take(TEXTURES)
    color = reader.take(COLORS)
    names = SHAPES if count == 1 else tuple(SINGULARS)
    expected = f"one of {', '.join(names)}"
    if color is None:
        expected = f"a colour ({', '.join(COLORS)}) or {expected}"
    shape = reader.need(names, expected)
    shape = shape if count == 1 else SINGULARS[shape]
    if color is None:
        be = "is" if count == 1 else "are"
        if not (reader.take_phrase(f"that {be}") or (count == 1 and reader.take_phrase("in"))):
            reader.fail(f"'that {be} COLOUR'" + (" or 'in COLOUR'" if count == 1 else ""))
        color = reader.need(COLORS, f"one of {', '.join(COLORS)}")
    return SceneObject(color, shape, texture, size), count, counted


def parse(prompt: str) -> Scene:
    """Read a prompt into the scene it states.

    Raises:
        ValueError: names the first word outside the grammar and what was expected there.
    """
    if not isinstance(prompt, str):
        raise TypeError(f"a scene prompt is a str, got {type(prompt).__name__}")
    reader = _Reader(prompt)
    first, count, counted = _read_object(reader)
    if count > 1 and reader.peek() is not None:
        reader.fail("the end of a counting prompt")
    objects, relations = [first] * count, []
    while reader.peek() is not None:
        found = (k for k, phrases in CONNECTORS.items() if any(map(reader.take_phrase, phrases)))
        kind = next(found, None)
        if kind is None:
            reader.fail("and, with, next to, a relation or the end")
        thing, n, number = _read_object(reader)
        if number and n > 1:
            raise ValueError(f"{prompt!r} counts objects after the first: only whole prompts count")
        objects.append(thing)
        if kind:
            relations.append(Relation(len(objects) - 2, kind, len(objects) - 1))
    if len(objects) > 4:
        raise ValueError(f"{prompt!r} has {len(objects)} objects; at most 4 fit a picture")
    return Scene(tuple(objects), tuple(relations), counted=counted)


# --- scenes to prompts -------------------------------------------------------------------------


def _article(word: str) -> str:
    return "an" if word[0] in "aeio" else "a"


def _object_text(thing: SceneObject, form: int, count: int = 0) -> str:
    """One object in words; count 0 takes an article. Forms 1 and 2 put the colour last."""
    plural = count > 1
    noun = PLURALS[thing.shape] if plural else thing.shape
    modifiers = [word for word in (thing.size, thing.texture) if word]
    if form == 0:
        words = [*modifiers, thing.color, noun]
    elif form == 1 or plural:
        words = [*modifiers, noun, "that", "are" if plural else "is", thing.color]
    else:
        words = [*modifiers, noun, "in", thing.color]
    return " ".join([NUMBERS[count - 1] if count else _article(words[0]), *words])


def _form(thing: SceneObject, rng: random.Random | None) -> int:
    """The main form, or one that `rng` draws; the others carry no size or texture."""
    return 0 if rng is None or thing.size or thing.texture else rng.choice((0, 0, 1, 2))


def describe(scene: Scene, rng: random.Random | None = None) -> str:
    """Write the stated facts of `scene` as a prompt: the main form, or a random form from `rng`."""
    first = scene.objects[0]
    alike = all((o.color, o.shape) == (first.color, first.shape) for o in scene.objects)
    if scene.counted or (len(scene.objects) > 1 and alike):
        return _object_text(first, _form(first, rng), len(scene.objects))
    kinds = {relation.first: relation.kind for relation in scene.relations}
    text = _object_text(first, _form(first, rng))
    for index, thing in enumerate(scene.objects[1:]):
        phrases = CONNECTORS[kinds.get(index, "")]
        connector = rng.choice(phrases) if rng else phrases[0]
        text += f" {connector} {_object_text(thing, _form(thing, rng))}"
    return text


# --- categories and the held-out split -----------------------------------------------------------


def scene_category(scene: Scene) -> str:
    """The category (one of `CATEGORIES`) that a scene belongs to."""
    objects = scene.objects
    looks = {(o.color, o.shape) for o in objects}
    if scene.counted or (len(objects) > 1 and len(looks) == 1):
        return "numeracy"
    if len(objects) == 1:
        return "single"
    sized = any(o.size for o in objects)
    textured = any(o.texture for o in objects)
    if len(objects) > 2 or (scene.relations and (sized or textured)):
        return "complex"
    if scene.relations:
        return "2d_spatial" if scene.relations[0].kind in RELATIONS_2D else "3d_spatial"
    if sized and textured:
        return "complex"
    if textured:
        return "texture"
    if sized:
        return "size"
    return "shape" if len({o.color for o in objects}) == 1 else "color"


def category(prompt: str) -> str:
    """The category (one of `CATEGORIES`) of a scenes prompt."""
    return scene_category(parse(prompt))


def heldout_combinations(scene: Scene) -> list[str]:
    """The combinations in `scene` that no embedded model was trained on, in words."""
    shape_index = {shape: i for i, shape in enumerate(SHAPES)}
    color_index = {color: i for i, color in enumerate(COLORS)}
    found = []
    counts: dict[tuple[str, str], int] = {}
    for o in scene.objects:
        counts[o.color, o.shape] = counts.get((o.color, o.shape), 0) + 1
    for (color, shape), n in counts.items():
        if (6 * color_index[color] + shape_index[shape]) % 7 == 3:
            found.append(f"{color} {shape}")
        if n >= 2 and (2 * n + shape_index[shape]) % 6 == 1:
            found.append(f"{NUMBERS[n - 1]} {PLURALS[shape]}")
    for relation in scene.relations:
        a, b = scene.objects[relation.first].shape, scene.objects[relation.second].shape
        if (6 * shape_index[a] + shape_index[b]) % 5 == 2:
            found.append(f"{a} {relation.kind} {b}")
    return found


def is_heldout(prompt: str) -> bool:
    """Whether a prompt holds any combination that was kept out of all training data."""
    return bool(heldout_combinations(parse(prompt)))


def heldout_half(scene: Scene) -> str | None:
    """`"a"` (may be trained and tuned on), `"b"` (reporting only) or None (a seen scene).

    `scene` is as parsed: what a prompt states.

    The half depends on the canonical scene, so all paraphrases of one scene fall together.
    """
    if not heldout_combinations(scene):
        return None
    text = describe(replace(scene, counted=scene.counted and len(scene.objects) > 1))
    return "ab"[hashlib.sha256(text.encode()).digest()[0] % 2]
