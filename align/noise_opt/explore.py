"""Searches without gradient: best of N, neighbours on the sphere, evolution.

They take any reward. Under a budget they go on until it is spent.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from align.noise_opt.records import Ask, Search, Setup
from align.noise_opt.regularizers import to_sphere

NEIGHBOUR_COSINE = 0.95  # of zero-order search (Ma et al. 2025, 2501.09732)
MUTATION = 0.2  # r of EvoSearch (2505.17618): e' = sqrt(1 - r^2) e + r z
ELITES = 2


def bon(s: Setup) -> Search:
    """Best of N: `seeds` noises (under a budget, unless seeds are given, all it pays for).

    Where the reward compares images, one round: those of `seeds` that the budget pays for.
    """
    if s.whole:
        yield Ask(s.draw(0, s.purse.fits(images=s.seeds)), "explore")
        return
    limit = s.seeds if s.seeds_given or s.purse.budget is None else 1_000_000
    done = 0
    while count := s.purse.fits(images=min(s.batch_size, limit - done)):
        yield Ask(s.draw(done, count), "explore")
        done += count


def zero_order(s: Setup) -> Search:
    """Of `seeds` neighbours of the best noise so far, move to the best if it is better.

    Neighbours lie on the sphere at cosine 0.95 from it (Ma et al. 2025, zero-order search).
    """
    count = s.purse.fits(images=s.seeds)
    noise = s.draw(0, count)
    answer = yield Ask(noise, "explore")
    at = int(answer.totals.argmax())
    pivot, best = noise[at], answer.totals[at]
    for _ in _iterations(s):
        count = s.purse.fits(images=s.seeds)
        if count == 0:
            return
        centre = pivot.expand(count, *pivot.shape)
        noise = to_sphere(blend(centre, s.normal_like(centre), NEIGHBOUR_COSINE))
        answer = yield Ask(noise, "neighbours")
        at = int(answer.totals.argmax())
        if answer.totals[at] > best:
            pivot, best = noise[at], answer.totals[at]


def evolution(s: Setup) -> Search:
    """`seeds` noises that breed: two elites stay, the others are mutants of tournament winners.

    EvoSearch's mutation (2505.17618, equation 8); elites keep their score without a new pass.
    """
    count = s.purse.fits(images=s.seeds)
    population = s.draw(0, count)
    totals = (yield Ask(population, "explore")).totals
    for _ in _iterations(s):
        elites = totals.argsort(descending=True)[:ELITES]
        count = s.purse.fits(images=max(1, s.seeds - len(elites)))
        if count == 0:
            return
        parents = population[_tournament(totals, count, s.fresh)]
        children = blend(parents, s.normal_like(parents), math.sqrt(1 - MUTATION**2))
        answer = yield Ask(children, "breed")
        population = torch.cat([population[elites], children])
        totals = torch.cat([totals[elites], answer.totals])


def blend(
    noise: Float[Tensor, "n c h w"], other: Float[Tensor, "n c h w"], cosine: float
) -> Float[Tensor, "n c h w"]:
    """cosine * noise + sine * other: unit variance stays unit variance."""
    return cosine * noise + math.sqrt(1 - cosine**2) * other


def _tournament(totals: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """`count` indices, each the better of two drawn."""
    pairs = torch.randint(len(totals), (2, count), generator=generator).to(totals.device)
    first, second = pairs
    return torch.where(totals[first] >= totals[second], first, second)


def _iterations(s: Setup) -> range:
    """The iterations left after the first; under a budget as many as it pays for."""
    open_end = s.purse.budget is not None and not s.iterations_given
    return range(1_000_000 if open_end else s.iterations - 1)
