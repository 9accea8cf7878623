"""Budgets (`30s`, `200nfe`, `64images`) and what has been spent of them."""

import math
import re
import time
from dataclasses import dataclass, field
from typing import Literal

Unit = Literal["s", "nfe", "images"]
FORMS = "a positive number with its unit: 30s, 200nfe or 64images"
_FORM = re.compile(r"(\d+(?:\.\d+)?)\s*(s|nfe|images?)")


@dataclass(frozen=True)
class Budget:
    """An amount of seconds, of passes of the denoiser (nfe) or of images."""

    amount: float
    unit: Unit

    def __str__(self) -> str:
        return f"{self.amount:g}{self.unit}"


def parse_budget(text: str) -> Budget:
    """The budget that a text such as `200nfe` names. Raises ValueError for any other form."""
    found = _FORM.fullmatch(str(text).strip())
    if found is None or float(found[1]) <= 0:
        raise ValueError(f"budget is {text!r}; it must be {FORMS}")
    unit: Unit = "s" if found[2] == "s" else "nfe" if found[2] == "nfe" else "images"
    return Budget(float(found[1]), unit)


@dataclass
class Purse:
    """What has been spent, counted per image, and what is left of a budget.

    A generator forward makes one image, in `steps` passes of the denoiser. A backward counts as
    `backward_cost` forwards: all that an image with gradient takes beyond one without. Scoring an
    image counts as `score_cost` forwards, its gradient as `slope_cost` more: nothing, unless a
    budget stands for time.
    """

    budget: Budget | None = None
    steps: int = 1
    backward_cost: float = 1.0
    generator_forwards: int = 0
    generator_backwards: int = 0
    preview_steps: int = 0
    """Denoising steps of images that were looked at before they were done, and left so."""
    reward_forwards: int = 0
    reward_backwards: int = 0
    score_cost: float = 0.0
    slope_cost: float = 0.0
    started: float = field(default_factory=time.perf_counter)

    @property
    def seconds(self) -> float:
        """Wall-clock seconds since the start."""
        return time.perf_counter() - self.started

    @property
    def forwards(self) -> float:
        """Forward-equivalents of the whole generator so far."""
        generator = self.drawn + self.backward_cost * self.generator_backwards
        scores = self.score_cost * self.reward_forwards + self.slope_cost * self.reward_backwards
        return generator + scores

    @property
    def drawn(self) -> float:
        """Images drawn, those left undone by their share of the steps."""
        return self.generator_forwards + self.preview_steps / self.steps

    @property
    def spent(self) -> float:
        """Share of the budget that is gone, from 0; always 0 without a budget."""
        if self.budget is None:
            return 0.0
        return self._spent_in_unit() / self.budget.amount

    @property
    def worth(self) -> float:
        """Images without gradient that the whole budget pays for; by the mean cost so far where it
        stands for time. Needs a budget, and of time an image drawn."""
        assert self.budget is not None
        if self.budget.unit == "images":
            return self.budget.amount
        if self.budget.unit == "nfe":
            return self.budget.amount / (self.steps * self.price())
        return self.budget.amount / self.seconds * self.forwards

    def fits(self, backwards: float = 0, images: int = 1_000_000, scores: float = 1.0) -> int:
        """How many of `images` more can be paid for, each with this many backwards and scores.

        A time budget takes the mean cost so far; before anything is known it admits four images.
        """
        if self.budget is None:
            return images
        if self.budget.unit == "s":
            left = self.budget.amount - self.seconds
            if not self.generator_forwards:
                return min(images, 4) if left > 0 else 0
            price = (1 + backwards * self.backward_cost) * self.seconds / self.forwards
        else:
            left = self.budget.amount - self._spent_in_unit()
            price = 1 if self.budget.unit == "images" else self.steps
            if self.budget.unit == "nfe":
                price *= self.price(backwards, scores)
        return max(0, min(images, math.floor(left / price + 1e-9)))

    def price(self, backwards: float = 0, scores: float = 1.0) -> float:
        """Forward-equivalents of an image with this many backwards and scores."""
        slope = self.slope_cost if backwards else 0.0
        return 1 + backwards * self.backward_cost + scores * self.score_cost + slope

    def _spent_in_unit(self) -> float:
        assert self.budget is not None
        if self.budget.unit == "s":
            return self.seconds
        if self.budget.unit == "images":
            return self.drawn
        return self.steps * self.forwards
