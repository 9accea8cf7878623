"""`scenes-count`: finds objects in a scenes picture and compares their numbers with the prompt's.

Each of 8x8 places holds an object centre with some probability, of some colour and shape; numbers
of objects are then Poisson-binomial. score = mean of log P(number = stated number) over the
prompt's (colour, shape) sorts and over all objects together, between log(1e-4) = -9.2 and 0.
Sizes, textures and relations are not looked at.
"""

from collections import Counter

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from align.rewards.scenes_layers import (
    load_weights,
    make_trunk,
    prepare,
    read_config,
    refuse_argument,
)
from align.scenes.grammar import COLORS, SHAPES, parse

NAME = "scenes-count"
CONFIG = {"widths": [16, 32, 48]}
FLOOR = 1e-4  # of probabilities before the logarithm
MOST = 5  # numbers from here on are one
_COLOR_INDEX = {color: i for i, color in enumerate(COLORS)}
_SHAPE_INDEX = {shape: i for i, shape in enumerate(SHAPES)}


def stated_counts(prompt: str) -> list[tuple[int, int, int]]:
    """(colour index, shape index, number) per sort of object; (-1, -1, total) at the end.

    Raises:
        ValueError: not a scenes prompt; names the first word outside the grammar.
    """
    objects = parse(prompt).objects
    sorts = Counter((_COLOR_INDEX[o.color], _SHAPE_INDEX[o.shape]) for o in objects)
    return [*((color, shape, n) for (color, shape), n in sorts.items()), (-1, -1, len(objects))]


def count_distribution(presence: Float[Tensor, "n places"]) -> Float[Tensor, "n counts"]:
    """P(number of objects = 0, 1, ..., `MOST` or more) from independent places."""
    first = torch.ones_like(presence[:, :1])
    distribution = torch.cat([first, torch.zeros_like(first).expand(-1, MOST)], 1)
    stay = torch.ones(MOST + 1).to(presence)
    stay[-1] = 0  # `MOST` or more stays so
    for p in presence.unsqueeze(-1).unbind(1):
        moved = F.pad(distribution[:, :-1], (1, 0))
        distribution = distribution * (1 - p * stay) + moved * p
    return distribution


def log_likelihood(
    present: Float[Tensor, "b places"],
    color: Float[Tensor, "b places colors"],
    shape: Float[Tensor, "b places shapes"],
    counts: Int[Tensor, "q 3"],
    owner: Int[Tensor, " q"],
) -> Float[Tensor, " q"]:
    """log P(number) of each row (colour, shape, number) of `counts` in image `owner[i]`, floored.

    The first three arguments are logits, as from `ScenesCount.maps`.
    """
    total = present.sigmoid()[owner]
    row = torch.arange(len(owner), device=owner.device)
    # -1 means any colour and shape; its clamped index is not used
    sort = color.softmax(-1)[owner][row, :, counts[:, 0].clamp(min=0)]
    sort = sort * shape.softmax(-1)[owner][row, :, counts[:, 1].clamp(min=0)]
    distribution = count_distribution(torch.where(counts[:, :1] < 0, total, total * sort))
    chosen = distribution.gather(1, counts[:, 2:].clamp(max=MOST)).squeeze(1)
    return (FLOOR + (1 - FLOOR) * chosen).log()


class ScenesCount(nn.Module):
    """Per place: is an object's centre here, and of which colour and shape."""

    def __init__(self, widths: list[int]):
        super().__init__()
        a, b, width = widths
        self.trunk = make_trunk((a, b, width))
        self.mix = nn.Conv2d(width, width, 3, padding=1)
        self.read = nn.Conv2d(width, 1 + len(COLORS) + len(SHAPES), 1)

    def maps(
        self, images: Float[Tensor, "b 3 h w"]
    ) -> tuple[
        Float[Tensor, "b places"],
        Float[Tensor, "b places colors"],
        Float[Tensor, "b places shapes"],
    ]:
        """Logits of presence, colour and shape at each of the 64 places, row by row."""
        features = F.silu(self.trunk(prepare(images, self.read.weight)))
        x = self.read(F.silu(self.mix(features))).flatten(2).transpose(1, 2)
        present, color, shape = x.split([1, len(COLORS), len(SHAPES)], dim=-1)
        return present.squeeze(-1), color, shape

    def forward(self, images: Float[Tensor, "b 3 h w"], prompts: list[str]) -> Float[Tensor, " b"]:
        """Mean log-likelihood of the stated numbers, in [-9.2, 0]; images in [0, 1].

        Raises:
            ValueError: a prompt outside the scenes grammar.
        """
        stated = [stated_counts(prompt) for prompt in prompts]
        device = self.read.weight.device
        counts = torch.tensor([row for rows in stated for row in rows], device=device)
        lengths = torch.tensor([len(rows) for rows in stated], device=device)
        owner = torch.arange(len(prompts), device=device).repeat_interleave(lengths)
        scores = log_likelihood(*self.maps(images), counts, owner)
        return scores.new_zeros(len(prompts)).index_add(0, owner, scores) / lengths


def load(argument: str | None, device) -> ScenesCount:
    """The reward `scenes-count`, frozen.

    Raises:
        FileNotFoundError: this installation has no weights for it.
    """
    refuse_argument(NAME, argument)
    model = ScenesCount(**read_config(NAME)["model"])
    load_weights(model, NAME)
    return model.to(device or "cpu")
