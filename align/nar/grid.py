"""Which tokens of a grid are decoded together, and what each is predicted from.

NAR visits a grid by distance from its first corner (arXiv 2503.10696, section 3.1): token
(i, j) of an image has distance i + j, token (t, i, j) of a clip t + i + j, and all tokens of
one distance (a wavefront) come out of one forward pass. A sequence is stored in decoding
order, so the keys that a pass may attend to are always a prefix: decoding needs no mask.

Raster order and PAR's four distant regions (arXiv 2412.15119) are described in the same form,
as baselines that share the model's code.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from math import prod

import torch
from jaxtyping import Bool, Int
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Order:
    """How a grid of n tokens is decoded by a model with one prediction head per axis.

    The input sequence is `[condition, slots]`. A slot holds a token, or a learned vector that
    only opens a group (PAR). Pass 0 reads the condition; pass g > 0 reads the slots from
    `fed[g - 1]` to `fed[g]` and predicts the tokens from `starts[g]` to `starts[g + 1]`.
    """

    grid_shape: tuple[int, ...]
    raster: Int[Tensor, " n"]  # raster index of each token, in decoding order
    starts: tuple[int, ...]  # first token of each pass; ends with n
    fed: tuple[int, ...]  # first slot read by each pass from 1 on; ends with the last one read
    sources: Int[Tensor, "heads n"]  # slot that predicts the token; -1 is the last condition token
    available: Bool[Tensor, "heads n"]  # whether the head has a neighbour there to predict from
    slots: Int[Tensor, " m"]  # token in the slot, in decoding order; n + k is learned vector k
    places: Int[Tensor, " m"]  # raster index whose position the slot has

    @property
    def num_tokens(self) -> int:
        return self.raster.numel()

    @property
    def num_passes(self) -> int:
        """Forward passes that decoding takes."""
        return len(self.starts) - 1

    @property
    def num_learned(self) -> int:
        """Learned vectors among the slots."""
        return int((self.slots >= self.num_tokens).sum())


def check_grid(grid_shape: Sequence[int], axes: tuple[int, ...] = (2, 3)) -> tuple[int, ...]:
    """Return `grid_shape` as a tuple of ints; ValueError unless it has 2 or 3 positive sides."""
    shape = tuple(int(side) for side in grid_shape)
    if len(shape) not in axes or min(shape) < 1:
        allowed = " or ".join({2: "(height, width)", 3: "(time, height, width)"}[a] for a in axes)
        raise ValueError(f"grid shape {shape}: expected {allowed} with every side at least 1")
    return shape


def coordinates(grid_shape: tuple[int, ...]) -> Int[Tensor, "n axes"]:
    """The coordinates of every token of a grid, in raster order."""
    return torch.cartesian_prod(*(torch.arange(side) for side in grid_shape)).view(
        prod(grid_shape), len(grid_shape)
    )


def wavefronts(grid_shape: tuple[int, ...]) -> list[Int[Tensor, " k"]]:
    """The raster indices of every wavefront, ascending (top right to bottom left in an image)."""
    distance = coordinates(check_grid(grid_shape)).sum(1)
    return [torch.nonzero(distance == d).flatten() for d in range(int(distance.max()) + 1)]


def wavefront_order(grid_shape: tuple[int, ...]) -> Order:
    """NAR's order: one wavefront a pass, sum(sides) - axes + 1 passes.

    Head 0 predicts along the last axis (the token to the right), head 1 along the one before
    it (the token below), head 2 along time. All heads predict the first token.
    """
    shape = check_grid(grid_shape)
    fronts = wavefronts(shape)
    raster = torch.cat(fronts)
    place = torch.argsort(raster)  # raster index -> place in decoding order
    where = coordinates(shape)[raster]
    sources, available = [], []
    for axis in reversed(range(len(shape))):
        inside = where[:, axis] > 0
        parent = raster - prod(shape[axis + 1 :])
        sources.append(torch.where(inside, place[parent.clamp(min=0)], -1))
        inside[0] = True  # the first token is predicted by every head from the condition
        available.append(inside)
    starts = (0, *accumulate(len(front) for front in fronts))
    return Order(
        shape,
        raster,
        starts,
        starts[:-1],
        torch.stack(sources),
        torch.stack(available),
        torch.arange(len(raster)),
        raster,
    )


def raster_order(grid_shape: tuple[int, ...]) -> Order:
    """Row by row, one token a pass, one head (the usual autoregressive baseline)."""
    shape = check_grid(grid_shape)
    tokens = torch.arange(prod(shape))
    starts = tuple(range(len(tokens) + 1))
    return Order(
        shape,
        tokens,
        starts,
        starts[:-1],
        (tokens - 1)[None],
        torch.ones(1, len(tokens), dtype=torch.bool),
        tokens,
        tokens,
    )


def parallel_order(grid_shape: tuple[int, ...]) -> Order:
    """PAR-4x: the four quadrants' first tokens one by one, then the quadrants in lock-step.

    n / 4 + 3 passes for n tokens. Three learned vectors stand beside the fourth token, so that
    every quadrant has an own input when lock-step begins (arXiv 2412.15119, section 3.2).
    """
    shape = check_grid(grid_shape, axes=(2,))
    height, width = shape
    if height % 2 or width % 2 or height * width == 4:
        raise ValueError(f"grid shape {shape}: PAR-4x needs even sides, one of them above 2")
    tokens = torch.arange(height * width).view(height, width)
    quadrants = [
        tokens[i : i + height // 2, j : j + width // 2].flatten()
        for i in (0, height // 2)
        for j in (0, width // 2)
    ]
    raster = torch.stack(quadrants, dim=1).flatten()  # round by round, quadrant by quadrant
    n = len(raster)
    learned = torch.arange(n, n + 3)
    order = torch.arange(n)
    slots = torch.cat([order[:3], learned, order[3:]])
    places = torch.cat([raster[:3], raster[:3], raster[3:]])
    # the first four follow each other; from then on a token follows its quadrant's previous one
    sources = torch.cat([torch.arange(-1, 3), order[:-4] + 3])
    return Order(
        shape,
        raster,
        (0, 1, 2, 3, *range(4, n + 1, 4)),
        (0, 1, 2, *range(3, n + 3, 4)),
        sources[None],
        torch.ones(1, n, dtype=torch.bool),
        slots,
        places,
    )


ORDERS = {"wavefront": wavefront_order, "raster": raster_order, "parallel": parallel_order}


def attention_mask(order: Order, num_condition_tokens: int) -> Bool[Tensor, "l l"]:
    """Who may attend (query, key) in the sequence of condition and slots that are ever read.

    The condition is causal within itself and never sees the picture. A slot attends to the
    whole condition, to all slots of earlier passes and to those of its own pass (equation 4).
    """
    groups = list(range(num_condition_tokens))
    for number, (start, end) in enumerate(pairwise(order.fed)):
        groups += [num_condition_tokens + number] * (end - start)
    group = torch.tensor(groups)
    return group[None, :] <= group[:, None]


def index_tables(order: Order, num_condition_tokens: int) -> dict[str, Tensor]:
    """What a model looks up, in positions of the sequence of condition and slots.

    `raster` and its inverse, the `slots` that are ever read, the `places` of a learned position
    table, the `sources` of each token per head and whether they are `available`, and the `mask`.
    """
    first = num_condition_tokens
    return {
        "raster": order.raster,
        "inverse": torch.argsort(order.raster),
        "slots": order.slots[: order.fed[-1]],
        "places": torch.cat([torch.arange(first), first + order.places]),
        "sources": (order.sources + first).clamp(min=0),
        "available": order.available,
        "mask": attention_mask(order, first),
    }
