"""Penalties that keep an optimized noise like a Gaussian draw; lower is better, one value a noise.

Log-norm sees the length only, KL mean and variance, `spectrum` the spread
over frequencies, `concentration` means and covariances of its rows. `to_sphere` is the hard form.
"""

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

SPECTRUM_GROUP = 16
RAYLEIGH_MEAN = math.sqrt(math.pi) / 2  # mean of |x| for a complex unit Gaussian
PERMUTATIONS = 20


def log_norm(noise: Float[Tensor, "n *shape"]) -> Float[Tensor, " n"]:
    """Minus the log-density of the norm of a D-dimensional Gaussian draw, up to a constant.

    |e|^2 / 2 - (D - 1) ln |e| (ReNO, 2406.04312, equation 5); least at |e| = sqrt(D - 1).
    """
    flat = noise.flatten(1)
    norm = flat.norm(dim=1)
    return norm.square() / 2 - (flat.shape[1] - 1) * norm.log()


def kl(noise: Float[Tensor, "n *shape"]) -> Float[Tensor, " n"]:
    """Divergence of N(mean, variance) of a noise's values from N(0, 1) (InitNO, 2404.04650)."""
    flat = noise.flatten(1)
    mean, variance = flat.mean(1), flat.var(1, correction=0)
    return (mean.square() + variance - 1 - variance.log()) / 2


def spectrum(noise: Float[Tensor, "n *shape"], seed: int = 0) -> Float[Tensor, " n"]:
    """First two moments and the power spectrum of the shuffled values (2509.07027).

    |mean| + |sqrt(mean of squares) - 1| + 25 mean |m_g - sqrt(pi)/2|, m_g the mean amplitude of
    groups of 16 frequencies. The order is a fixed permutation, so the penalty sees every
    direction of structure alike and stays the same function from call to call.
    """
    flat = noise.flatten(1)
    size = flat.shape[1]
    order = torch.randperm(size, generator=torch.Generator().manual_seed(seed)).to(flat.device)
    moments = flat.mean(1).abs() + (flat.square().mean(1).sqrt() - 1).abs()
    half = torch.fft.rfft(flat[:, order])[:, 1 : (size + 1) // 2]  # the real ends left out
    amplitudes = half.abs() / math.sqrt(size)
    groups = amplitudes.shape[1] // SPECTRUM_GROUP
    if groups == 0:
        return moments
    means = amplitudes[:, : groups * SPECTRUM_GROUP].unflatten(1, (groups, -1)).mean(2)
    return moments + 25 * (means - RAYLEIGH_MEAN).abs().mean(1)


def concentration(
    noise: Float[Tensor, "n *shape"], row: int = 16, seed: int = 0
) -> Float[Tensor, " n"]:
    """How improbable mean and covariance of the noise's rows are, by concentration bounds.

    DNO (2405.18881, section 3.3): -log of the bounds, for rows of `row` values, in order and as
    the mean over permutations. Zero gradient for a typical draw: each bound is flat below ln 2.
    """
    flat = noise.flatten(1)
    size = flat.shape[1]
    row = min(row, size)
    generator = torch.Generator().manual_seed(seed)
    value = _rows_penalty(flat, row)
    for _ in range(PERMUTATIONS):
        order = torch.randperm(size, generator=generator).to(flat.device)
        value = value + _rows_penalty(flat[:, order], row) / PERMUTATIONS
    return value


def _rows_penalty(flat: Float[Tensor, "n d"], k: int) -> Float[Tensor, " n"]:
    n = flat.shape[1] // k
    rows = flat[:, : n * k].unflatten(1, (n, k))
    log_2 = math.log(2)
    mean_bound = (-n * rows.mean(1).square().sum(1) / (2 * k)).clamp(max=-log_2)
    covariance = rows.transpose(1, 2) @ rows / n - torch.eye(k).to(rows)
    distance = torch.linalg.matrix_norm(covariance, ord=2)
    excess = ((1 + distance).sqrt() - 1 - math.sqrt(k / n)).clamp(min=0)
    return -(mean_bound + (-n * excess.square() / 2).clamp(max=-log_2))


PRIORS: dict[str, Callable[[Tensor], Tensor]] = {
    "log-norm": log_norm,
    "kl": kl,
    "spectrum": spectrum,
    "concentration": concentration,
}


def prior_gradient(kind: str, weight: float) -> Callable[[Tensor], Tensor]:
    """The gradient of `weight` times a penalty, as a function of the noise [n, c, h, w]."""
    penalty = PRIORS[kind]

    def gradient(noise: Tensor) -> Tensor:
        if weight == 0:
            return torch.zeros_like(noise)
        with torch.enable_grad():
            leaf = noise.detach().requires_grad_(True)
            return torch.autograd.grad(weight * penalty(leaf).sum(), leaf)[0]

    return gradient


def to_sphere(noise: Float[Tensor, "n *shape"]) -> Float[Tensor, "n *shape"]:
    """Each noise at length sqrt(D), where nearly all Gaussian draws lie; the direction stays."""
    flat = noise.flatten(1)
    scale = math.sqrt(flat.shape[1]) / flat.norm(dim=1).clamp(min=1e-12)
    return noise * scale.view(-1, *[1] * (noise.ndim - 1))
