"""`carinox`: explore noises cheaply, follow the best a short way by gradient, choose among all.

Departures from the published code, which optimizes five fixed seeds in full: exploration is
without gradient and in batches, where samplers take many steps by a look at x_0 first; candidates
that look different come first; each is followed for a short path only, and halfway the worse end
(successive halving), so that the next start; steps have a length relative to the noise's, which
stays on the sphere.
"""

import math
import statistics
from collections.abc import Generator
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from align.noise_opt.ascend import finite_rows, gradients_of, nesterov, scaled
from align.noise_opt.guard import SHIFTS
from align.noise_opt.records import Answer, Ask, Search, Setup
from align.noise_opt.regularizers import to_sphere

KEPT = 2  # candidates that are followed at once
LOOKS = 0.55  # of what exploring may cost: previews of x_0
DIVERSITY_FLOOR = 0.5  # of the median distance between explored images
PATH = 240.0  # iterations times learning rate that a candidate is followed
REFERENCE_LENGTH = 128.0  # of SD-Turbo's noise, sqrt(4 * 64 * 64): steps grow with the length


@dataclass(frozen=True)
class Track:
    """A candidate that is followed."""

    noise: Float[Tensor, "c h w"]
    velocity: Float[Tensor, "c h w"] | None = None
    best: float = -math.inf
    age: int = 0
    since: int = 0
    """Iterations since the best score."""


def carinox(s: Setup) -> Search:
    """Explore, screen, follow the best by gradient a short way each; the driver chooses."""
    noises, images, totals = yield from _explore(s)
    waiting = [int(i) for i in screen(images, totals) if totals[i].isfinite()]
    only_explores = s.purse.budget is not None and s.explore_share == 1
    if not waiting or len(s.weights) == 0 or only_explores:
        return
    each, leg = backwards_each(s), max(2, round(PATH / s.learning_rate))
    endless = s.purse.budget is not None and not s.iterations_given
    total_iterations = 1_000_000 if endless else s.iterations
    affordable = s.purse.fits(each, scores=1 + len(SHIFTS)) // leg
    width = max(1, min(KEPT, affordable))
    tracks, rung = [], []
    for iteration in range(total_iterations):
        if not waiting and s.purse.budget is not None and not s.seeds_given:
            waiting = [*range(len(noises), len(noises) + width)]
            noises = torch.cat([noises, s.draw(len(noises), width)])
        tracks, waiting, notes = refilled(tracks, waiting, width, noises)
        if not tracks:
            return
        count = s.purse.fits(each, len(tracks), 1 + len(SHIFTS))  # changed copies are scored too
        if count == 0 or iteration + 1 == total_iterations:
            if count := s.purse.fits(0, len(tracks), 1 + len(SHIFTS)):
                yield Ask(_stack(tracks[:count]), "optimize", notes=notes)
            yield from _spend_the_rest(s, len(noises))
            return
        tracks = tracks[:count]
        noise = _stack(tracks)
        answer = yield Ask(noise, "optimize", s.pull, notes)
        gradient, scores = _combined(s, gradients_of(answer), noise), answer.totals
        keep = finite_rows(gradient, scores)
        tracks = [
            _moved(track, gradient[row], float(scores[row]), s.learning_rate)
            for row, track in enumerate(tracks)
            if keep[row]
        ]
        tracks = [track for track in tracks if goes_on(track, leg, rung)]


def _spend_the_rest(s: Setup, done: int) -> Generator[Ask, Answer, None]:
    """Plain candidates for what is left of a budget that prices scores: they take one each, where
    one that is followed takes several."""
    while s.purse.score_cost and (count := s.purse.fits(images=s.batch_size)):
        yield Ask(s.draw(done, count), "explore")
        done += count


def _explore(s: Setup) -> Generator[Ask, Answer, tuple[Tensor, Tensor, Tensor]]:
    """Images of many noises without gradient; where samplers take many steps, of those that a
    look at x_0 after a few of them finds best."""
    budget, limit, pool = s.purse.budget, s.seeds, None
    if budget is not None:
        planned = 1_000_000 if budget.unit == "s" else int(s.explore_share * s.purse.fits())
        # one at least, from which optimization starts
        limit = max(1, min(s.seeds, planned) if s.seeds_given else planned)
    looking = bool(s.preview) and budget is not None and not s.seeds_given
    noises, images, totals, done = [], [], [], 0
    while done < limit and (done == 0 or s.purse.spent < s.explore_share):
        most = 1 if looking and done == 0 else s.batch_size
        count = s.purse.fits(images=min(most, limit - done))
        if count == 0:
            break
        noise = s.draw(done, count) if pool is None else pool[done - 1 : done - 1 + count]
        if len(noise) == 0:
            break
        answer = yield Ask(noise, "explore")
        noises.append(noise)
        images.append(answer.images)
        totals.append(answer.totals)
        done += len(noise)
        if looking and pool is None:
            pool = yield from _promising(s)
            limit = done + int(_left_to_explore(s))
    return torch.cat(noises), torch.cat(images), torch.cat(totals)


def _promising(s: Setup) -> Generator[Ask, Answer, Tensor]:
    """All noises but the first that LOOKS of what exploring may cost pays for, those first whose
    x_0, predicted after `s.preview` steps, scores best (as TTSnap and RTS drop candidates)."""
    count = int(LOOKS * _left_to_explore(s) * s.purse.steps / s.preview)
    noises, totals = s.draw(1, max(1, count)), []
    if count < 2:
        return noises
    for part in noises.split(s.batch_size):
        answer = yield Ask(part, "preview", stop=s.preview)
        totals.append(answer.totals)
    return noises[torch.cat(totals).argsort(descending=True, stable=True)]


def _left_to_explore(s: Setup) -> float:
    """Images that exploring may still cost."""
    return s.explore_share * s.purse.worth - s.purse.forwards + 1e-9


def backwards_each(s: Setup) -> float:
    """Backwards of an image with gradient, by cost: "exact" makes it once a term."""
    terms = len(s.weights)
    return terms + (terms - 1) / s.purse.backward_cost if s.pull == "exact" else 1.0


def screen(
    images: Float[Tensor, "n 3 h w"], totals: Float[Tensor, " n"], floor: float = DIVERSITY_FLOOR
) -> list[int]:
    """Candidates, best score first, those that look like a better one moved to the end.

    Two images look alike where their distance is below `floor` times the median distance.
    """
    order = totals.argsort(descending=True, stable=True).tolist()
    flat = images.flatten(1).float()
    distances = torch.cdist(flat, flat)
    above = distances[torch.ones_like(distances).triu(1).bool()]
    least = floor * above.median() if len(above) else 0.0
    different: list[int] = []
    alike: list[int] = []
    for index in order:
        near = different and distances[index, different].min() < least
        (alike if near else different).append(index)
    return different + alike


def goes_on(track: Track, leg: int, rung: list[float]) -> bool:
    """Whether a candidate is followed further: it rises, its path is short, and it is promising.

    A plateau of half a path ends it, and halfway a best score below the median of all that came
    there (asynchronous successive halving, 1810.05934). `rung` holds those scores and grows.
    """
    half = leg // 2
    if track.age == half:
        rung.append(track.best)
        if track.best < statistics.median(rung):
            return False
    return track.age < leg and track.since < max(2, half)


def refilled(
    tracks: list[Track], waiting: list[int], width: int, noises: Float[Tensor, "n c h w"]
) -> tuple[list[Track], list[int], tuple[str, ...]]:
    """The tracks that go on and, where room is, the next explored candidates, in a sentence too."""
    room = width - len(tracks)
    fresh, waiting = waiting[:room], waiting[room:]
    notes = tuple(f"candidate {index} is followed" for index in fresh)
    return tracks + [Track(noises[index]) for index in fresh], waiting, notes


def _moved(track: Track, gradient: Tensor, total: float, learning_rate: float) -> Track:
    velocity = None if track.velocity is None else track.velocity[None]
    noise, velocity = nesterov(track.noise[None], gradient[None], velocity, learning_rate)
    since = 0 if total > track.best else track.since + 1
    return Track(to_sphere(noise)[0], velocity[0], max(track.best, total), track.age + 1, since)


def _combined(s: Setup, gradients: Tensor, noise: Tensor) -> Tensor:
    """One direction for every candidate at the fixed step length, the prior counted once."""
    if s.pull == "exact":
        norms = gradients.flatten(2).norm(dim=2).clamp(min=1e-20)
        factors = (s.clip / norms).clamp(max=1.0) if s.clip else torch.ones_like(norms)
        weights = (s.weights[:, None] * factors).view(*norms.shape, 1, 1, 1)
        gradient = (weights * gradients).sum(0)
    else:
        gradient = gradients[0]
    length = math.sqrt(noise[0].numel()) / REFERENCE_LENGTH * (s.clip or 1.0)
    return scaled(gradient, length) + s.prior(noise)


def _stack(tracks: list[Track]) -> Tensor:
    return torch.stack([track.noise for track in tracks])
