"""How much the pictures of one prompt differ.

In the scenes world only *exact* pictures count, since wrong pictures differ in uninteresting
ways: how far the same object lies apart and differs in radius, and how often what the prompt
leaves open (texture, size) differs. Elsewhere it is a distance of CLIP features.
"""

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from align.scenes import parse
from align.scenes.grammar import SceneObject

MEASURES = {
    "position": "mean distance of an object's centres in two exact pictures, px",
    "radius": "mean difference of its radii, px",
    "unsaid": "share of pairs that differ in a texture or size that the prompt leaves open",
}

Objects = Sequence[dict[str, Any]]


def scene_diversity(prompt: str, pictures: Sequence[Objects]) -> dict[str, float] | None:
    """The measures above, mean over all pairs of a prompt's exact pictures; None without a pair.

    Args:
        pictures: what the verifier read in each exact picture (`judging.read_scene`).
    """
    stated = parse(prompt).objects
    pairs = [_pair(stated, a, b) for a, b in combinations(pictures, 2)]
    if not pairs:
        return None
    return {name: float(np.mean([pair[name] for pair in pairs])) for name in pairs[0]}


def _pair(stated: Sequence[SceneObject], a: Objects, b: Objects) -> dict[str, float]:
    distances, radii, differ = [], [], []
    for kind in dict.fromkeys((one.color, one.shape) for one in stated):
        mine = [one for one in a if (one["color"], one["shape"]) == kind]
        theirs = [one for one in b if (one["color"], one["shape"]) == kind]
        apart = np.array([[_distance(one, other) for other in theirs] for one in mine])
        first = next(one for one in stated if (one.color, one.shape) == kind)
        for i, j in zip(*linear_sum_assignment(apart), strict=True):  # alike objects: the nearest
            distances.append(apart[i, j])
            radii.append(abs(mine[i]["r"] - theirs[j]["r"]))
            for name in ("texture", "size"):
                if getattr(first, name) is None:
                    differ.append(mine[i][name] != theirs[j][name])
    found = {"position": float(np.mean(distances)), "radius": float(np.mean(radii))}
    return found | ({"unsaid": float(np.mean(differ))} if differ else {})


def _distance(one: dict[str, Any], other: dict[str, Any]) -> float:
    return float(np.hypot(one["x"] - other["x"], one["y"] - other["y"]))


def feature_diversity(features: Float[Tensor, "n d"]) -> float:
    """1 - cosine of CLIP features (rows of unit length), mean over all pairs of one prompt."""
    n = len(features)
    if n < 2:
        raise ValueError(f"diversity needs at least 2 pictures of a prompt, got {n}")
    total = (features @ features.T).sum() - n
    return float(1 - total / (n * (n - 1)))
