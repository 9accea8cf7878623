"""What keeps an optimized noise as long as a Gaussian draw: a penalty, lower is better, one value a
noise; `to_sphere` is the hard form."""

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor


def log_norm(noise: Float[Tensor, "n *shape"]) -> Float[Tensor, " n"]:
    """Minus the log-density of the norm of a D-dimensional Gaussian draw, up to a constant.

    |e|^2 / 2 - (D - 1) ln |e| (ReNO, 2406.04312, equation 5); least at |e| = sqrt(D - 1).
    """
    flat = noise.flatten(1)
    norm = flat.norm(dim=1)
    return norm.square() / 2 - (flat.shape[1] - 1) * norm.log()


def prior_gradient(weight: float) -> Callable[[Tensor], Tensor]:
    """The gradient of `weight` times `log_norm`, as a function of the noise [n, c, h, w]."""

    def gradient(noise: Tensor) -> Tensor:
        if weight == 0:
            return torch.zeros_like(noise)
        with torch.enable_grad():
            leaf = noise.detach().requires_grad_(True)
            return torch.autograd.grad(weight * log_norm(leaf).sum(), leaf)[0]

    return gradient


def to_sphere(noise: Float[Tensor, "n *shape"]) -> Float[Tensor, "n *shape"]:
    """Each noise at length sqrt(D), where nearly all Gaussian draws lie; the direction stays."""
    flat = noise.flatten(1)
    scale = math.sqrt(flat.shape[1]) / flat.norm(dim=1).clamp(min=1e-12)
    return noise * scale.view(-1, *[1] * (noise.ndim - 1))
