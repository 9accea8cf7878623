"""`scenes-taste`: how a scenes picture looks, large and clear or small and crowded.

The network says at each of 8x8 places whether an object's centre is near, of which colour, how
large it is, how far from its neighbours and from the border, and how far off its colour; and of
the whole picture how light and even its ground is. The score has the form and the unit of the
exact value (docs/scenes.md; `align.scenes.measure_taste`), about 0 to 6.5, with means over the
objects:

    4 size / 19 + 0.5 room / 2 + (1 - 4 colour distance) + lightness evenness

It reads two things of the prompt, so that taste costs no rightness. Objects stated small (by their
colour, which no other object has where sizes are stated) are best at `SMALL_RADIUS`, the largest
that still is small; and prompts that want objects to overlap leave gaps between objects out.
Which places hold an object is decided, not weighed: no gradient makes one appear or vanish.
"""

from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from align.rewards.scenes_layers import (
    load_weights,
    make_trunk,
    prepare,
    read_config,
    refuse_argument,
)
from align.scenes.grammar import COLORS, RELATIONS_3D, parse

NAME = "scenes-taste"
CONFIG = {"widths": [24, 48, 80], "blocks": [1, 2]}
FULL_RADIUS, FULL_GAP = 19.0, 2.0  # px; as in the exact value
PALE = 0.25  # colour distance, likewise
SMALL_RADIUS = 9.5  # px; small ends at 12, and what the world draws as small at 10
DARKEST, LIGHTEST, MOST_UNEVEN = 225.0, 245.0, 8.0  # grey levels; as in the exact value
FIELDS = (1, len(COLORS) + 1, 1, 1, 1, 1, 1, 1)


@dataclass(frozen=True)
class Looks:
    """What the network says: at each place [b, n], and of the ground [b]."""

    presence: Float[Tensor, "b n"]
    """Log-odds that an object's centre is near."""
    color: Float[Tensor, "b n colors"]
    """Logits; the last class is "none of them"."""
    radius: Float[Tensor, "b n"]
    """px, as all lengths."""
    gap: Float[Tensor, "b n"]
    """From the nearest other object, circle to circle."""
    border: Float[Tensor, "b n"]
    """Gap from the border of the picture."""
    off: Float[Tensor, "b n"]
    """Distance of the object's pixels to its colour, 0 to 1."""
    level: Float[Tensor, " b"]
    """Grey level of the ground, 0 to 255."""
    uneven: Float[Tensor, " b"]
    """Deviation of the ground from one colour, grey levels."""


class ScenesTaste(nn.Module):
    """Convolutions to 8x8 places, and a map a field."""

    def __init__(self, widths: list[int], blocks: list[int]):
        super().__init__()
        a, b, c = widths
        self.trunk = make_trunk((a, b, c), (blocks[0], blocks[1]))
        self.head = nn.Sequential(nn.SiLU(), nn.Conv2d(c, sum(FIELDS), 1))

    def looks(self, images: Float[Tensor, "b 3 h w"]) -> Looks:
        """The findings, the 64 places row by row; images in [0, 1]."""
        out = self.head(self.trunk(prepare(images, next(self.parameters()))))
        out = out.flatten(2).transpose(1, 2)
        out = out.to(torch.promote_types(out.dtype, torch.float32))
        presence, color, *rest = out.split(FIELDS, -1)
        radius, gap, border, off, level, uneven = (x.squeeze(-1) for x in rest)
        return Looks(
            presence.squeeze(-1), color, 12 + 4 * radius, 4 * gap, 4 * border,
            0.1 * F.softplus(off), 235 + 10 * level.mean(1), 4 * F.softplus(uneven.mean(1)),
        )  # fmt: skip

    def forward(self, images: Float[Tensor, "b 3 h w"], prompts: list[str]) -> Float[Tensor, " b"]:
        """How much each picture has of the style, about 0 to 6.5; images in [0, 1].

        Raises:
            ValueError: a prompt outside the scenes grammar; names its first word that is.
        """
        return score(self.looks(images), prompts)


def up_to(x: Tensor, most: float, beyond: float = 0.0) -> Tensor:
    """x where it is below `most`; above, a line of slope `beyond`; smooth over a unit."""
    return x - (1 - beyond) * F.softplus(x - most)


@lru_cache(maxsize=4096)
def read_prompt(prompt: str) -> tuple[frozenset[str], bool]:
    """The colours of the objects stated small, and whether some objects shall overlap."""
    scene = parse(prompt)
    small = frozenset(o.color for o in scene.objects if o.size == "small")
    return small, any(relation.kind in RELATIONS_3D for relation in scene.relations)


def stated(
    prompts: list[str], device=None
) -> tuple[Bool[Tensor, "b colors"], Float[Tensor, "b 1"]]:
    """Which colours (and "none", which is not) are stated small; 0 where objects shall overlap."""
    read = [read_prompt(prompt) for prompt in prompts]
    small = [[color in colors for color in COLORS] + [False] for colors, _ in read]
    apart = [[0.0 if overlap else 1.0] for _, overlap in read]
    return torch.tensor(small, device=device), torch.tensor(apart, device=device)


def score(looks: Looks, prompts: list[str]) -> Float[Tensor, " b"]:
    """The style of each picture as far as its prompt leaves it free; see the module's docstring."""
    small, apart = stated(prompts, looks.radius.device)
    is_small = small.gather(1, looks.color.argmax(-1))
    size = torch.where(
        is_small,
        up_to(looks.radius, SMALL_RADIUS, beyond=-1.0),
        up_to(looks.radius, FULL_RADIUS),
    )
    gap = torch.where(apart > 0, up_to(looks.gap, FULL_GAP), FULL_GAP)
    room = (up_to(looks.border, FULL_GAP) + gap) / 2
    each = 4 * size / FULL_RADIUS + 0.5 * room / FULL_GAP + 1 - looks.off / PALE
    there = (looks.presence > 0).to(each)
    light = (up_to(looks.level, LIGHTEST) - DARKEST) / (LIGHTEST - DARKEST)
    clean = light * (1 - looks.uneven / MOST_UNEVEN)
    return (each * there).sum(1) / there.sum(1).clamp(min=1) + clean


def load(argument: str | None, device) -> ScenesTaste:
    """The reward `scenes-taste`, frozen.

    Raises:
        FileNotFoundError: this installation has no weights for it.
    """
    refuse_argument(NAME, argument)
    model = ScenesTaste(**read_config(NAME)["model"])
    load_weights(model, NAME)
    return model.to(device or "cpu")
