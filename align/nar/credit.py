"""Which wavefront earned a picture's reward: advantages by the reward of the unfinished picture.

A picture's advantage credits all of its tokens alike, so that its gradient is mostly noise. The
reward also judges the picture as far as it is drawn, the rest painted in its background, which
foresees the final score the better the more is drawn: a critic without training. With its values,
generalized advantage estimation (Schulman et al., arXiv 1506.02438, equation 16, no discount)
credits a wavefront with what the value rises by from there on.
"""

from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from align.nar.grid import Order


def pass_of_tokens(order: Order) -> Int[Tensor, " n"]:
    """The decoding pass of every token, raster order."""
    passes = torch.empty(order.num_tokens, dtype=torch.long)
    for number, (start, end) in enumerate(pairwise(order.starts)):
        passes[order.raster[start:end]] = number
    return passes


def value_points(num_passes: int, count: int) -> list[int]:
    """Up to `count` numbers of passes, evenly spread, after which a picture is unfinished."""
    spread = torch.linspace(0, num_passes, min(count, num_passes - 1) + 2).round()
    return [int(point) for point in spread[1:-1]]


def unfinished(
    images: Float[Tensor, "b 3 h w"], passes: Int[Tensor, "rows columns"], done: int
) -> Float[Tensor, "b 3 h w"]:
    """The images after `done` passes; what is missing gets the median colour of what is there.

    They are cut from the finished images, so that a decoder that sees beyond a token lets the edge
    show a little of what comes next: the value is that of the prefix nearly, not exactly.
    """
    height, width = images.shape[-2:]
    rows = torch.arange(height) * passes.shape[0] // height
    columns = torch.arange(width) * passes.shape[1] // width
    drawn = (passes[rows][:, columns] < done).to(images.device)
    fill = images[..., drawn].median(-1).values
    return torch.where(drawn, images, fill[..., None, None])


def scores_of_unfinished(
    reward: Any, images: Tensor, prompts: list[str], metadata: list[Any], order: Order, count: int
) -> Float[Tensor, "b points"]:
    """The reward, in its own units, of images in [0, 1] after each of `value_points` passes.

    An image of one pass is never unfinished: no points.
    """
    passes = pass_of_tokens(order).view(order.grid_shape)
    columns = []
    for done in value_points(order.num_passes, count):
        terms = reward.terms(unfinished(images, passes, done), prompts, metadata)
        columns.append(reward.combine(terms).to(images.device))
    return torch.stack(columns, dim=1) if columns else images.new_zeros(len(images), 0)


def values_of(
    scores: Float[Tensor, "b points"],
    advantages: Float[Tensor, " b"],
    group_size: int,
    gather: Any = lambda x: x,
) -> Float[Tensor, "b points"]:
    """What the scores of unfinished images foresee of the advantages.

    Scores count against the mean of their group, times one coefficient a point: that of least
    squares over the images of an update (in all processes; `gather` brings them together).
    A score that is not finite, as of an image that is hardly begun, foresees nothing.
    """
    groups = scores.unflatten(0, (-1, group_size))
    centred = (groups - groups.mean(1, keepdim=True)).flatten(0, 1)
    centred = torch.where(centred.isfinite(), centred, 0.0)
    both, one = gather((centred * advantages[:, None])[None]), gather(centred.square()[None])
    slope = both.sum((0, 1)) / one.sum((0, 1)).clamp(min=1e-12)
    return slope * centred


def generalized_advantages(
    values: Float[Tensor, "b points"],
    advantages: Float[Tensor, " b"],
    order: Order,
    gae_lambda: float,
) -> Float[Tensor, "b n"]:
    """The advantage of every token, raster order; between two points the value is interpolated."""
    total = order.num_passes
    points = [0, *value_points(total, values.shape[1]), total]
    final = advantages[:, None]
    known = torch.cat([torch.zeros_like(final), values, final], dim=1)
    curve = []
    for number, (start, end) in enumerate(pairwise(points)):
        part = torch.linspace(0, 1, end - start + 1, dtype=values.dtype, device=values.device)[:-1]
        curve.append(torch.lerp(known[:, number, None], known[:, number + 1, None], part))
    rises = torch.cat([*curve, final], dim=1).diff(dim=1)
    credit, ahead = [], torch.zeros_like(advantages)
    for number in range(total - 1, -1, -1):
        ahead = rises[:, number] + gae_lambda * ahead
        credit.append(ahead)
    by_pass = torch.stack(credit[::-1], dim=1)
    return by_pass[:, pass_of_tokens(order).to(values.device)]
