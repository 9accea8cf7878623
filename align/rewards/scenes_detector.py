"""`scenes-detector`: finds the objects of a scenes picture and compares them with the prompt.

The network says for each of 16x16 places of a picture whether an object's centre is near, and of
which colour, shape, texture, offset, radius and depth it is, and whether a flaw is: a stain, or a
patch of another colour within an object. `align.rewards.scenes_score` compares that with what the
prompt states.

`scenes-detector:soft` is 4 sigmoid((score + 3) / 2), to train by: a picture that misses by little
has the most to say in the gradient, one that is right or hopeless next to nothing.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from align.rewards.facts import Fact
from align.rewards.scenes_facts import explain
from align.rewards.scenes_layers import (
    ResidualBlock,
    load_weights,
    prepare,
    read_config,
)
from align.rewards.scenes_score import FIELDS, Maps, cell_centers, score

NAME = "scenes-detector"
CONFIG = {"widths": [32, 64, 96], "blocks": [2, 3, 1]}


class ScenesDetector(nn.Module):
    """Convolutions to 16x16 places, a deeper branch at 8x8 added back, and a map a field."""

    def __init__(self, widths: list[int], blocks: list[int]):
        super().__init__()
        a, b, c = widths
        self.soft = False
        self.stem = nn.Sequential(
            nn.Conv2d(3, a, 4, stride=2, padding=1),
            nn.SiLU(),
            nn.Conv2d(a, a, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(a, b, 4, stride=2, padding=1),
            *(ResidualBlock(b) for _ in range(blocks[0])),
        )
        self.deep = nn.Sequential(
            nn.Conv2d(b, c, 3, stride=2, padding=1),
            *(ResidualBlock(c) for _ in range(blocks[1])),
            nn.GroupNorm(8, c),
            nn.SiLU(),
            nn.Conv2d(c, b, 1),
        )
        self.head = nn.Sequential(
            *(ResidualBlock(b) for _ in range(blocks[2])),
            nn.GroupNorm(8, b),
            nn.SiLU(),
            nn.Conv2d(b, sum(FIELDS), 1),
        )
        *_, bias = self.head.parameters()
        nn.init.constant_(bias[:1], -4.0)  # most places hold nothing

    def maps(self, images: Float[Tensor, "b 3 h w"]) -> Maps:
        """The findings at each of the 256 places, row by row; images in [0, 1]."""
        x = self.stem(prepare(images, next(self.parameters())))
        deep = F.interpolate(self.deep(x), x.shape[-2:], mode="bilinear", align_corners=False)
        out = self.head(x + deep)
        rows, columns = out.shape[-2:]
        out = out.flatten(2).transpose(1, 2)
        out = out.to(torch.promote_types(out.dtype, torch.float32))
        presence, color, shape, texture, offset, radius, depth, flaw = out.split(FIELDS, -1)
        centers = cell_centers(rows, columns, out.device)
        return Maps(
            presence.squeeze(-1), color, shape, texture,
            centers + offset, 12 + 4 * radius.squeeze(-1), depth.squeeze(-1),
            flaw.squeeze(-1),
        )  # fmt: skip

    def forward(self, images: Float[Tensor, "b 3 h w"], prompts: list[str]) -> Float[Tensor, " b"]:
        """About log P(the picture shows exactly what its prompt states), <= 0; images in [0, 1].

        With `soft` 4 sigmoid((that + 3) / 2), 0 to 3.3.

        Raises:
            ValueError: a prompt outside the scenes grammar; names its first word that is.
        """
        scores = score(self.maps(images), prompts)
        return 4 * ((scores + 3) / 2).sigmoid() if self.soft else scores

    def explain(self, images: Float[Tensor, "b 3 h w"], prompts: list[str]) -> list[list[Fact]]:
        """How probably each fact that a prompt states holds in its picture; raises as `forward`."""
        return explain(self.maps(images), prompts)


def load(argument: str | None, device) -> ScenesDetector:
    """The reward `scenes-detector`, frozen, or `scenes-detector:soft`.

    Raises:
        ValueError: another argument.
        FileNotFoundError: this installation has no weights for it.
    """
    if argument not in (None, "soft"):
        raise ValueError(f"reward {NAME!r} takes no argument but soft, got {argument!r}")
    model = ScenesDetector(**read_config(NAME)["model"])
    model.soft = argument == "soft"
    load_weights(model, NAME)
    return model.to(device or "cpu")
