"""Judging pictures of the scenes world: does a picture show what its prompt states?

Scores as GenEval does (Ghosh et al. 2023, section 3), from objects that `read` finds without any
network. The facts of a prompt are, for every stated object, that one of its colour and shape is
there, and its texture and its size where said; every relation; and the number where counted.
It is a judge, never a training signal: nothing here has gradients.
"""

import itertools

import torch
from jaxtyping import Float
from torch import Tensor

from align.scenes.grammar import Relation, Scene, SceneObject, parse
from align.scenes.reader import ReadObject, read
from align.scenes.silhouettes import IMAGE_SIZE, coverage

MIN_DISTANCE = 6.0  # px between centres along the axis of a 2-D relation
MIN_HIDDEN = 15.0  # px^2 of the rear object that the front one covers in a 3-D relation
TOLERANCE = 1.0  # px of measuring error in centres
HIDDEN_TOLERANCE = 4.0  # px^2, the same along the edge of an overlap


def relation_holds(kind: str, a: ReadObject, b: ReadObject) -> bool:
    """Whether `a` stands in relation `kind` (see `grammar.CONNECTORS`) to `b`."""
    if kind in ("in front of", "behind"):
        front, rear = (a, b) if kind == "in front of" else (b, a)
        return front.depth > rear.depth and _overlap(a, b) >= MIN_HIDDEN - HIDDEN_TOLERANCE
    dx, dy = b.x - a.x, b.y - a.y
    along, across = (dx, dy) if kind in ("left of", "right of") else (dy, dx)
    if kind in ("right of", "below"):
        along = -along
    return along >= MIN_DISTANCE - TOLERANCE and along > abs(across) - TOLERANCE


def _overlap(a: ReadObject, b: ReadObject) -> float:
    """Area in px^2 that two silhouettes share."""
    if a.shape is None or b.shape is None:
        return 0.0
    return float((coverage(a.shape, a.x, a.y, a.r) * coverage(b.shape, b.x, b.y, b.r)).sum())


def _object_facts(stated: SceneObject, seen: ReadObject | None) -> list[bool]:
    """Presence, then texture and size where said."""
    facts = [seen is not None]
    if stated.texture is not None:
        facts.append(seen is not None and seen.texture == stated.texture)
    if stated.size is not None:
        facts.append(seen is not None and seen.size == stated.size)
    return facts


def _relation_fact(relation: Relation, chosen: list[ReadObject | None]) -> bool:
    a, b = chosen[relation.first], chosen[relation.second]
    return a is not None and b is not None and relation_holds(relation.kind, a, b)


def check(scene: Scene, seen: list[ReadObject]) -> list[bool]:
    """Which stated facts hold, under the assignment of stated to seen objects that fits best.

    Args:
        scene: what a prompt states.
        seen: what `read` found.

    Returns:
        one truth value a fact: objects in order (presence, texture, size), relations, the count.
    """
    likely: list[list[ReadObject | None]] = [
        [o for o in seen if (o.color, o.shape) == (s.color, s.shape)] for s in scene.objects
    ]
    best: list[bool] | None = None
    for chosen in itertools.product(*([*choices, None] for choices in likely)):
        taken = [id(o) for o in chosen if o is not None]
        if len(taken) != len(set(taken)):
            continue
        pairs = zip(scene.objects, chosen, strict=True)
        facts = [fact for stated, one in pairs for fact in _object_facts(stated, one)]
        facts += [_relation_fact(relation, list(chosen)) for relation in scene.relations]
        if best is None or sum(facts) > sum(best):
            best = facts
    assert best is not None  # nothing chosen is always possible
    if scene.counted:
        best = [*best, len(likely[0]) == len(scene.objects)]
    return best


def verify(
    prompts: list[str], images: Float[Tensor, "b 3 64 64"]
) -> tuple[Float[Tensor, " b"], Float[Tensor, " b"]]:
    """Judge pictures against their prompts.

    Args:
        prompts: one scenes prompt a picture.
        images: RGB in [0, 1].

    Returns:
        exact: 1.0 where every stated fact holds and the picture has no other object, else 0.0.
        partial: the share of the stated facts that hold, 0 to 1.

    Raises:
        ValueError: a prompt outside the grammar, another number of prompts than of pictures, or
            pictures of another size.
    """
    if images.ndim != 4 or tuple(images.shape[1:]) != (3, IMAGE_SIZE, IMAGE_SIZE):
        raise ValueError(f"scenes pictures are [batch, 3, 64, 64], got {list(images.shape)}")
    if isinstance(prompts, str) or len(prompts) != len(images):
        count = "one string" if isinstance(prompts, str) else f"{len(prompts)} prompts"
        raise ValueError(f"verify needs one prompt a picture, got {count} for {len(images)}")
    scenes = [parse(prompt) for prompt in prompts]
    exact, partial = [], []
    for scene, image in zip(scenes, images.detach().float().cpu().numpy(), strict=True):
        seen = read(image)
        facts = check(scene, seen)
        exact.append(float(all(facts) and len(seen) == len(scene.objects)))
        partial.append(sum(facts) / len(facts))
    return torch.tensor(exact, device=images.device), torch.tensor(partial, device=images.device)
