"""Scores of big models picture by picture: the memory of one picture, whatever the batch.

A pointwise score depends on its own picture alone, so its slope d score / d pixels can be taken at
once and the graph let go; going back multiplies the slope by what comes in. This is exact.
"""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

Score = Callable[[Tensor, int], Tensor]
"""(picture [1, 3, h, w], its index in the batch) -> score [1]"""


class _Slopes(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, images: Tensor, score: Score) -> Tensor:
        scores, slopes = [], torch.empty_like(images)
        for index in range(len(images)):
            with torch.enable_grad():
                picture = images[index : index + 1].detach().requires_grad_()
                value = score(picture, index)
                (slope,) = torch.autograd.grad(value.sum(), picture)
            scores.append(value.detach())
            slopes[index] = slope[0]
        ctx.save_for_backward(slopes)
        return torch.cat(scores)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (slopes,) = ctx.saved_tensors
        return slopes * gradients[0].to(slopes).view(-1, 1, 1, 1), None


def by_picture(score: Score, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, " b"]:
    """Scores of pictures one after the other, with their gradient to the pictures where asked for.

    There is no gradient to the model's weights, and none of second order.
    """
    if torch.is_grad_enabled() and images.requires_grad:
        return _Slopes.apply(images, score)  # pyright: ignore[reportReturnType]
    with torch.no_grad():
        return torch.cat([score(images[i : i + 1], i) for i in range(len(images))])


def to_bytes(images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
    """Pictures rounded as a PNG file has them, still in [0, 1]; no gradient goes through."""
    return (images.detach() * 255).round().clamp(0, 255) / 255
