"""What a search asks for, what it gets, and what `align.optimize` yields.

A method is a generator: it yields an `Ask` (noises to make images of, with or without gradient)
and is sent the `Answer`. It knows neither pipeline nor reward; the driver in
`align.noise_opt.search` does, counts the passes and keeps the best.
"""

from collections.abc import Callable, Generator
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from align.config.budget import Purse
from align.config.optimize import Pull as Pull


@dataclass(frozen=True)
class Ask:
    """Noises to make images of."""

    noise: Float[Tensor, "n c h w"]
    phase: str
    pull: Pull | None = None
    """None: no gradient."""
    notes: tuple[str, ...] = ()
    """Sentences for whoever reads the log."""
    stop: int | None = None
    """After how many steps to look: the images are x_0 as predicted then, and none of them becomes
    the best (default: after all steps)."""


@dataclass(frozen=True)
class Answer:
    """Images of the noises asked for, their scores and gradients."""

    images: Float[Tensor, "n 3 height width"]
    terms: dict[str, Float[Tensor, " n"]]
    totals: Float[Tensor, " n"]
    """The weighted objective, higher is better; -inf where an image or score is not finite."""
    gradients: Float[Tensor, "k n c h w"] | None
    """Of minus the objective by the noise: one (k = 1), or one a term, neither weighted nor
    clipped, where the terms were pulled back apart."""


Search = Generator[Ask, Answer, None]


@dataclass(frozen=True)
class OptimizeStep:
    """One iteration of a search; counts are of all iterations so far, per image."""

    iteration: int
    phase: str
    """What the iteration did: explore, optimize, …"""
    image: Float[Tensor, "3 height width"]
    """This iteration's best candidate, in [0, 1]."""
    terms: dict[str, float]
    """Its scores, term by term, unweighted."""
    total: float
    """Its weighted score."""
    noise: Float[Tensor, "c h w"]
    """Its noise, float32, unit variance."""
    best_image: Float[Tensor, "3 height width"]
    best_terms: dict[str, float]
    best_total: float
    best_noise: Float[Tensor, "c h w"]
    seconds: float
    generator_forwards: int
    generator_backwards: int
    reward_forwards: int
    improved: bool
    """Whether the best is new in this iteration."""
    images: Float[Tensor, "n 3 height width"] = field(repr=False)
    """All candidates of this iteration, with `totals` and `noises`."""
    totals: Float[Tensor, " n"] = field(repr=False)
    noises: Float[Tensor, "n c h w"] = field(repr=False)
    notes: tuple[str, ...] = ()
    """What else happened, such as a dropped candidate."""


@dataclass(frozen=True)
class Setup:
    """What every method gets: its settings, noises by seed, the purse."""

    iterations: int
    seeds: int
    seeds_given: bool
    iterations_given: bool
    learning_rate: float
    clip: float
    explore_share: float
    weights: Float[Tensor, " k"]
    """Of the differentiable parts of the objective, for methods that combine gradients."""
    pull: Pull
    prior: Callable[[Tensor], Tensor]
    """Gradient of the weighted regularizer by the noise [n, c, h, w]."""
    draw: Callable[[int, int], Tensor]
    """`draw(start, count)`: the noises of these candidates, each from its own seed."""
    fresh: torch.Generator
    """For all other chance of the search."""
    batch_size: int
    purse: Purse
    preview: int = 0
    """Steps after which the predicted x_0 tells hopeless noises; 0 where it cannot."""
    whole: bool = False
    """Whether the reward compares images, so that scores of one `Ask` alone can be compared."""

    def normal_like(self, noise: Tensor) -> Tensor:
        """Fresh unit noise of this shape, reproducible on every device."""
        drawn = torch.randn(noise.shape, generator=self.fresh, dtype=noise.dtype)
        return drawn.to(noise.device)
