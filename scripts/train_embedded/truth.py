"""Ground truth for training rewards: what is true of a drawn scene; nothing looks at pixels."""

import itertools
from collections import Counter

import torch
from torch import Tensor

from align.language.assertions import Assertion, Thing
from align.scenes.grammar import COLORS, RELATIONS_2D, SIZES, TEXTURES, Scene, SceneObject
from align.scenes.render import relation_holds_2d

SIZE_BORDER = 12.0  # px; "small" is below, "large" above


def relation_holds(kind: str, a: SceneObject, b: SceneObject) -> bool:
    """Whether placed `a` stands in relation `kind` to placed `b`."""
    if kind in RELATIONS_2D:
        return relation_holds_2d(kind, a, b)
    overlap = (a.x - b.x) ** 2 + (a.y - b.y) ** 2 < (0.9 * (a.r + b.r)) ** 2
    nearer = a.depth > b.depth
    return overlap and nearer == (kind == "in front of")


def object_holds(said: SceneObject, drawn: SceneObject) -> bool:
    """Whether everything said about one object is true of one drawn object."""
    if (said.color, said.shape) != (drawn.color, drawn.shape):
        return False
    if said.texture not in (None, drawn.texture):
        return False
    return said.size is None or (said.size == "small") == (drawn.r < SIZE_BORDER)


def looks(scene: Scene) -> frozenset:
    """The multiset of (colour, shape) in a scene, hashable."""
    return frozenset(Counter((o.color, o.shape) for o in scene.objects).items())


def satisfies(said: Scene, drawn: Scene) -> bool:
    """Whether a drawn scene shows exactly what a prompt's scene says, and nothing else."""
    if looks(said) != looks(drawn):
        return False
    for order in itertools.permutations(drawn.objects):
        if all(map(object_holds, said.objects, order)) and all(
            relation_holds(r.kind, order[r.first], order[r.second]) for r in said.relations
        ):
            return True
    return False


def truth_matrix(said: list[Scene], drawn: list[Scene]) -> Tensor:
    """Bool (drawn, said): whether prompt j is true of picture i."""
    by_looks: dict[frozenset, list[int]] = {}
    for j, scene in enumerate(said):
        by_looks.setdefault(looks(scene), []).append(j)
    matrix = torch.zeros(len(drawn), len(said), dtype=torch.bool)
    for i, scene in enumerate(drawn):
        for j in by_looks.get(looks(scene), ()):
            matrix[i, j] = satisfies(said[j], scene)
    return matrix


# --- assertions ----------------------------------------------------------------------------------


def thing_holds(thing: Thing, drawn: SceneObject) -> bool:
    """Whether a drawn object is of the described sort."""
    words = {"color": COLORS, "texture": TEXTURES, "size": SIZES}
    said = {
        field: next((a for a in thing.attributes if a in values), None)
        for field, values in words.items()
    }
    if thing.noun != drawn.shape or said["color"] not in (None, drawn.color):
        return False
    described = SceneObject(drawn.color, drawn.shape, said["texture"], said["size"])
    return object_holds(described, drawn)


def assertion_holds(assertion: Assertion, drawn: Scene) -> bool:
    """Whether the answer to a scenes assertion is yes for a drawn scene."""
    subject = assertion.subject
    fitting = [o for o in drawn.objects if thing_holds(subject, o)]
    if assertion.kind == "count":
        return len(fitting) == assertion.count
    if assertion.kind == "relation":
        others = [o for o in drawn.objects if thing_holds(assertion.other, o)]
        return any(
            relation_holds(assertion.relation, a, b) for a in fitting for b in others if a is not b
        )
    if assertion.question.startswith("Are all"):
        sort = Thing(subject.noun, subject.attributes[1:])
        return bool(fitting) and len(fitting) == sum(thing_holds(sort, o) for o in drawn.objects)
    return bool(fitting)
