"""The forward process: what a clean image becomes with noise, and what a model should say of it.

Notation: x_t = a x_0 + s e with e ~ N(0, 1). Flow matching: a = 1 - sigma, s = sigma. Variance
preserving: a = sqrt(abar_t), s = sqrt(1 - abar_t), abar the scheduler's `alphas_cumprod`.
"""

from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

Kind = Literal["flow", "epsilon", "v_prediction", "sample"]
LEAST_ERROR = 1e-5  # that a self-normalised error is divided by


def prediction_kind(scheduler: Any) -> Kind | None:
    """What a model trained with this scheduler predicts; None for one that is told nothing of.

    "flow" is the velocity e - x_0 of flow matching.
    """
    kind = scheduler.config.get("prediction_type")
    if hasattr(scheduler, "scale_noise") or kind == "flow_prediction":
        return "flow"
    known = hasattr(scheduler, "alphas_cumprod") and kind in ("epsilon", "v_prediction", "sample")
    return kind if known else None


def coefficients(
    scheduler: Any, timesteps: Float[Tensor, " n"] | Int[Tensor, " n"]
) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
    """(a, s) of timesteps: real numbers from 0 to 1000 sigma for flow matching, else integers."""
    if prediction_kind(scheduler) == "flow":
        sigma = timesteps / scheduler.config.num_train_timesteps
        return 1 - sigma, sigma
    share = scheduler.alphas_cumprod.to(timesteps.device)[timesteps]
    return share.sqrt(), (1 - share).sqrt()


def corrupt(
    clean: Float[Tensor, "n ..."],
    noise: Float[Tensor, "n ..."],
    a: Float[Tensor, " n"],
    s: Float[Tensor, " n"],
) -> Float[Tensor, "n ..."]:
    """x_t = a x_0 + s e, row by row."""
    return like(a, clean) * clean + like(s, clean) * noise


def target(
    kind: Kind,
    clean: Float[Tensor, "n ..."],
    noise: Float[Tensor, "n ..."],
    a: Float[Tensor, " n"],
    s: Float[Tensor, " n"],
) -> Float[Tensor, "n ..."]:
    """The right answer at x_t: e - x_0, e, a e - s x_0 or x_0 (2202.00512 for v)."""
    if kind == "flow":
        return noise - clean
    if kind == "v_prediction":
        return like(a, clean) * noise - like(s, clean) * clean
    return noise if kind == "epsilon" else clean


def error_weight(kind: Kind, a: Float[Tensor, " n"], s: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """What an error of the output counts, about as one of the clean image.

    That is s for flow and v and 1 for x_0; for epsilon s / (a + s) in place of s / a, which has
    no bound at high noise. For flow matching a + s = 1, so both are one rule.
    """
    if kind == "sample":
        return torch.ones_like(s)
    return s / (a + s) if kind == "epsilon" else s


def self_normalized(
    output: Float[Tensor, "n ..."], right: Float[Tensor, "n ..."], weight: Float[Tensor, " n"]
) -> Float[Tensor, " n"]:
    """weight mean(error^2) / mean |error|, the divisor without gradient (DiffusionNFT, 2509.16117):
    steps of equal size whatever the noise level. In float32 or what is finer."""
    error = (output - right).to(torch.promote_types(output.dtype, torch.float32)).flatten(1)
    scale = error.detach().abs().mean(1).clamp(min=LEAST_ERROR)
    return weight.to(error) * error.square().mean(1) / scale


def like(row: Float[Tensor, " n"], images: Float[Tensor, "n ..."]) -> Tensor:
    """One number a row, shaped to multiply images by."""
    return row.to(images).view(-1, *[1] * (images.ndim - 1))
