"""`carinox`: explore many noises cheaply, optimize the few that promise most, choose among all.

Departures from the published code, which optimizes five fixed seeds in full: exploration is
without gradient and in batches; only the best few that also look different are optimized, by
successive halving; a candidate that no longer gains makes room for the next; steps have a fixed
relative length, so that they fit noises of any size; the noise stays on the sphere.
"""

import math
from collections.abc import Generator
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from align.noise_opt.ascend import finite_rows, gradients_of, nesterov, scaled
from align.noise_opt.records import Answer, Ask, Search, Setup
from align.noise_opt.regularizers import to_sphere

KEPT = 4  # candidates that optimization begins with, fewer where the budget is small
LEAST_ITERATIONS = 6  # that a candidate must get, or fewer candidates start
DIVERSITY_FLOOR = 0.5  # of the median distance between explored images
PATIENCE = 8  # iterations without a gain before a candidate makes room
LEAST_GAIN = 0.02  # that counts as one, in standard deviations of the explored scores
FINAL_RATE = 0.2  # of the learning rate, at the end
REFERENCE_LENGTH = 128.0  # of SD-Turbo's noise, sqrt(4 * 64 * 64): steps grow with the length


@dataclass(frozen=True)
class _Track:
    """A candidate under optimization."""

    noise: Float[Tensor, "c h w"]
    best: float
    velocity: Float[Tensor, "c h w"] | None = None
    stale: int = 0


def carinox(s: Setup) -> Search:
    """Explore, screen, optimize by halving with restarts; the driver chooses among all."""
    noises, images, totals = yield from _explore(s)
    spread = totals[totals.isfinite()].std(correction=0).item() if len(totals) > 1 else 0.0
    queue = [int(i) for i in screen(images, totals) if totals[i].isfinite()]
    if not queue or len(s.weights) == 0:
        return
    each = backwards_each(s)
    start, affordable = s.purse.spent, s.purse.fits(each)
    budgeted = s.purse.budget is not None
    total_iterations = 1_000_000 if budgeted and not s.iterations_given else s.iterations
    width = max(1, min(KEPT, len(queue), affordable // LEAST_ITERATIONS))
    tracks = [_Track(noises[i], float(totals[i])) for i in queue[:width]]
    waiting, notes = queue[width:], ()
    iteration = 0
    while tracks and iteration < total_iterations:
        done = (s.purse.spent - start) / max(1e-9, 1 - start) if budgeted else 0.0
        done = max(done, iteration / total_iterations)
        tracks = halved(tracks, width, done)
        count = s.purse.fits(each, len(tracks))
        if count == 0 or iteration + 1 == total_iterations:
            if count := s.purse.fits(0, len(tracks)):
                yield Ask(_stack(tracks[:count]), "optimize", notes=notes)
            return
        tracks = sorted(tracks, key=lambda track: -track.best)[:count]
        noise = _stack(tracks)
        answer = yield Ask(noise, "optimize", s.pull, notes)
        gradient = _combined(s, gradients_of(answer), noise)
        rate = s.learning_rate * _decay(done)
        keep, kept, notes = finite_rows(gradient, answer.totals), [], ()
        for row, track in enumerate(tracks):
            if not keep[row]:
                continue
            gained = float(answer.totals[row]) - track.best
            stale = 0 if gained > LEAST_GAIN * spread else track.stale + 1
            moved, velocity = nesterov(
                noise[row : row + 1],
                gradient[row : row + 1],
                None if track.velocity is None else track.velocity[None],
                rate,
            )
            kept.append(
                _Track(to_sphere(moved)[0], track.best + max(0.0, gained), velocity[0], stale)
            )
        tracks, waiting, notes = restarted(kept, waiting, noises, totals)
        iteration += 1


def _explore(s: Setup) -> Generator[Ask, Answer, tuple[Tensor, Tensor, Tensor]]:
    """Images of many noises without gradient."""
    budget, limit = s.purse.budget, s.seeds
    if budget is not None:
        planned = 1_000_000 if budget.unit == "s" else int(s.explore_share * s.purse.fits())
        # one at least, from which optimization starts
        limit = max(1, min(s.seeds, planned) if s.seeds_given else planned)
    noises, images, totals, done = [], [], [], 0
    while done < limit and (done == 0 or s.purse.spent < s.explore_share):
        count = s.purse.fits(images=min(s.batch_size, limit - done))
        if count == 0:
            break
        noise = s.draw(done, count)
        answer = yield Ask(noise, "explore")
        noises.append(noise)
        images.append(answer.images)
        totals.append(answer.totals)
        done += count
    return torch.cat(noises), torch.cat(images), torch.cat(totals)


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


def halved(tracks: list[_Track], width: int, done: float) -> list[_Track]:
    """The tracks that stay: half of them after each third of the way."""
    rounds = min(2, int(3 * done))
    allowed = max(1, width >> rounds)
    if len(tracks) <= allowed:
        return tracks
    return sorted(tracks, key=lambda track: -track.best)[:allowed]


def restarted(
    tracks: list[_Track], waiting: list[int], noises: Tensor, totals: Tensor
) -> tuple[list[_Track], list[int], tuple[str, ...]]:
    """Stale tracks replaced by the next explored candidates, or dropped where none waits."""
    live, notes = [], []
    for track in tracks:
        if track.stale < PATIENCE:
            live.append(track)
        elif waiting:
            index, *waiting = waiting
            live.append(_Track(noises[index], float(totals[index])))
            notes.append(f"a candidate stopped gaining; candidate {index} takes its place")
    return live, waiting, tuple(notes)


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


def _decay(done: float) -> float:
    """The learning rate's factor: 1 at first, FINAL_RATE at the end, along a cosine."""
    return FINAL_RATE + (1 - FINAL_RATE) * (1 + math.cos(math.pi * min(1.0, done))) / 2


def _stack(tracks: list[_Track]) -> Tensor:
    return torch.stack([track.noise for track in tracks])
