"""Why a score is what it is: single facts of a prompt and how probably a picture shows them.

A reward that can say so has a method `explain(images, prompts) -> list[list[Fact]]`, the facts of
each picture in the order of its prompt.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from align.rewards.catalogue import REWARDS


@dataclass(frozen=True)
class Fact:
    """One thing that a prompt states and how sure the reward is that the picture shows it."""

    text: str
    """As a sentence or a yes/no question; the same for every picture of a prompt."""
    probability: float
    note: str = ""
    """What is there instead, where the reward knows."""

    def __str__(self) -> str:
        return f"{self.probability:.2f}  {self.text}" + (f" ({self.note})" if self.note else "")


def in_rows(
    texts: Sequence[Sequence[str]], probabilities: Float[Tensor, " facts"]
) -> list[list[Fact]]:
    """The facts of each picture, from their texts and the probabilities one after the other."""
    flat = iter(probabilities.tolist())
    return [[Fact(text, next(flat)) for text in row] for row in texts]


@torch.no_grad()
def explain(
    reward: Any, images: Float[Tensor, "b 3 h w"], prompts: Sequence[str]
) -> dict[str, list[list[Fact]]]:
    """The facts of each picture by every term of a `Reward` that can explain, by its name.

    Raises ValueError where none of the terms can.
    """
    able = {name: f for name, f in reward.functions.items() if hasattr(f, "explain")}
    if not able:
        others = [name for name, known in REWARDS.items() if known.explains]
        others = ", ".join(sorted(others, key=lambda name: not name.startswith("scenes-")))
        raise ValueError(
            f"{', '.join(reward.functions)} cannot say why a score is low; {others} can"
        )
    images = reward.placed(images)
    return {name: function.explain(images, list(prompts)) for name, function in able.items()}
