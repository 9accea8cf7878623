"""Published searches by gradient: ReNO, CARINOX as released, Langevin (ORIGEN).

Every iteration makes the image of the present noise and then moves the noise, so the last one
needs no gradient. Candidates whose gradient is not finite are dropped.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from align.noise_opt.evaluate import clipped
from align.noise_opt.records import Answer, Ask, Search, Setup

MOMENTUM = 0.9
PAPER_RATIO = 10  # CARINOX: 5 seeds of 50 iterations
LANGEVIN_SCALE = 0.3  # s of ORIGEN (2503.22194): x' = sqrt(1 - s) x + eta s grad + sqrt(s) z


def nesterov(
    noise: Float[Tensor, "n c h w"],
    gradient: Float[Tensor, "n c h w"],
    velocity: Float[Tensor, "n c h w"] | None,
    learning_rate: float,
) -> tuple[Float[Tensor, "n c h w"], Float[Tensor, "n c h w"]]:
    """One step of torch's SGD with Nesterov momentum 0.9: the new noise and velocity."""
    velocity = gradient if velocity is None else MOMENTUM * velocity + gradient
    return noise - learning_rate * (gradient + MOMENTUM * velocity), velocity


def reno(s: Setup) -> Search:
    """ReNO (2406.04312): gradient ascent on the weighted sum, `seeds` noises apart.

    g = clip(grad(-sum_i weight_i R_i + prior), 0.1); SGD with Nesterov momentum. Published: one
    seed, 50 iterations, learning rate 5 (10 for Hyper-SDXL).
    """
    noise, velocity = s.draw(0, max(1, s.purse.fits(1, s.seeds))), None
    open_end = s.purse.budget is not None and not s.iterations_given
    for iteration in range(1_000_000 if open_end else s.iterations):
        last = not open_end and iteration + 1 == s.iterations
        if last or s.purse.fits(1, len(noise)) < len(noise):
            if count := s.purse.fits(0, len(noise)):
                yield Ask(noise[:count], "optimize")
            return
        answer = yield Ask(noise, "optimize", "sum")
        gradient = clipped(gradients_of(answer)[0] + s.prior(noise), s.clip)
        keep = finite_rows(gradient, answer.totals)
        if not keep.any():
            return
        velocity = None if velocity is None else velocity[keep]
        noise, velocity = nesterov(noise[keep], gradient[keep], velocity, s.learning_rate)


def carinox_paper(s: Setup) -> Search:
    """CARINOX as released (revision 8204fcb), its defects kept: the baseline of benchmarks.

    Among all images the one with the largest sum of terms without their weights is chosen.

    Every seed is optimized in full, one after the other. Each reward has a backward pass of its
    own; its weight is applied before the clip and the prior is added to each:
    g = clip(sum_i clip(grad(-weight_i R_i + prior), 0.1), 0.1). Under a budget seeds and
    iterations keep the proportion 5:50.
    """
    seeds, iterations = s.seeds, s.iterations
    if s.purse.budget is not None:
        seeds, iterations = paper_plan(s)
    for seed in range(seeds):
        noise, velocity = s.draw(seed, 1), None
        for iteration in range(iterations):
            last = iteration + 1 == iterations
            if last or not s.purse.fits(len(s.weights), 1):
                if s.purse.fits(0, 1):
                    yield Ask(noise, "optimize")
                break
            answer = yield Ask(noise, "optimize", "per-term")
            prior = s.prior(noise)
            terms = s.weights.view(-1, 1, 1, 1, 1) * gradients_of(answer) + prior
            gradient = clipped(torch.stack([clipped(t, s.clip) for t in terms]).sum(0), s.clip)
            if not finite_rows(gradient, answer.totals).all():
                break
            noise, velocity = nesterov(noise, gradient, velocity, s.learning_rate)


def paper_plan(s: Setup) -> tuple[int, int]:
    """(seeds, iterations) that the budget pays for, ten iterations a seed as published."""
    affordable = max(1, s.purse.fits(len(s.weights)))
    seeds = max(1, round(math.sqrt(affordable / PAPER_RATIO)))
    return seeds, max(1, affordable // seeds)


def langevin(s: Setup) -> Search:
    """Langevin steps that keep the noise Gaussian (ORIGEN, 2503.22194).

    x' = sqrt(1 - s) x + eta s g + sqrt(s) z with s = 0.3 and eta the learning rate (0.8); g is
    the reward's gradient at the length of a noise, as rewards differ in scale.
    """
    noise = s.draw(0, max(1, s.purse.fits(1, s.seeds)))
    open_end = s.purse.budget is not None and not s.iterations_given
    for iteration in range(1_000_000 if open_end else s.iterations):
        last = not open_end and iteration + 1 == s.iterations
        if last or s.purse.fits(1, len(noise)) < len(noise):
            if count := s.purse.fits(0, len(noise)):
                yield Ask(noise[:count], "optimize")
            return
        answer = yield Ask(noise, "optimize", "sum")
        gradient = gradients_of(answer)[0]
        keep = finite_rows(gradient, answer.totals)
        if not keep.any():
            return
        noise, ascent = noise[keep], scaled(-gradient[keep], math.sqrt(noise[0].numel()))
        drift = s.learning_rate * LANGEVIN_SCALE * ascent
        spread = math.sqrt(LANGEVIN_SCALE) * s.normal_like(noise)
        noise = math.sqrt(1 - LANGEVIN_SCALE) * noise + drift + spread


def gradients_of(answer: Answer) -> Float[Tensor, "k n c h w"]:
    assert answer.gradients is not None  # whoever asks for a pull gets gradients
    return answer.gradients


def finite_rows(gradient: Float[Tensor, "n c h w"], totals: Float[Tensor, " n"]) -> Tensor:
    """Which candidates can go on: gradient and score are finite. bool [n]."""
    return gradient.flatten(1).isfinite().all(1) & totals.isfinite()


def scaled(gradient: Float[Tensor, "n c h w"], length: float) -> Float[Tensor, "n c h w"]:
    """Each row at this L2 norm; a row of zeros stays."""
    norms = gradient.flatten(1).norm(dim=1).clamp(min=1e-20)
    return gradient * (length / norms).view(-1, 1, 1, 1)
