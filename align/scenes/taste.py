"""How a picture of the scenes world looks, whatever its prompt: the exact value of a style.

The style is large objects in full colours, apart from each other and from the border, on light
even ground. `read` finds the objects, so this is a judge's measure, with no gradient; the reward
`scenes-taste` is a network that has learned the same.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from scipy import ndimage
from torch import Tensor

from align.scenes.grammar import COLORS
from align.scenes.reader import ReadObject, as_rgb, read
from align.scenes.render import BACKGROUND
from align.scenes.silhouettes import IMAGE_SIZE, coverage

FULL_RADIUS = 19.0  # px; no object of the world is larger
FULL_GAP = 2.0  # px, the world's own; a wider one is no better
MOST_UNEVEN = 8.0  # grey levels of root mean square, from which ground is not even at all
DARKEST, LIGHTEST = BACKGROUND  # grey levels; white would hide the white of textures
PALE = 0.25  # colour distance from which a colour is not full at all
SIZE_WEIGHT, ROOM_WEIGHT = 4.0, 0.5
FARTHEST = 255 * math.sqrt(3)


@dataclass(frozen=True)
class Taste:
    """What `measure_taste` finds in each picture; see docs/scenes.md."""

    radius: Float[Tensor, " b"]
    """Mean over the objects, px; 0 where there is none."""
    gap: Float[Tensor, " b"]
    """Least gap between the circles of two objects, or of one and the border, px; below 0 where
    objects overlap; 0 where there is none."""
    color_distance: Float[Tensor, " b"]
    """Mean distance of an object's own pixels to its colour, 0 to 1; 1 where there is none."""
    evenness: Float[Tensor, " b"]
    """Of the ground: 1 is one colour, 0 deviations of 8 grey levels."""
    ground: Float[Tensor, " b"]
    """Its grey level, 0 to 255."""
    value: Float[Tensor, " b"]
    """`taste_value` of these."""


def measure_taste(images: Float[Tensor, "b 3 64 64"] | Sequence) -> Taste:
    """Measure how pictures look, by what the verifier's reader finds in them.

    Args:
        images: RGB in [0, 1], or a sequence of pictures as `read` takes them.

    Raises:
        ValueError: a picture of another shape or type.
    """
    if isinstance(images, Tensor) and images.is_floating_point():
        images = images.detach().float().cpu()
    rows = [_measure(as_rgb(image), read(image)) for image in images]
    columns = torch.tensor(rows, dtype=torch.float32).reshape(-1, 5).unbind(1)
    return Taste(*columns, value=taste_value(*columns))


def taste_value(
    radius: Tensor, gap: Tensor, color_distance: Tensor, evenness: Tensor, ground: Tensor
) -> Tensor:
    """4 radius / 19 + 0.5 gap / 2 + (1 - 4 color_distance) + evenness (ground - 225) / 20, each
    share within 0 and 1: 0 to 6.5."""
    size = (radius / FULL_RADIUS).clamp(0, 1)
    room = (gap / FULL_GAP).clamp(0, 1)
    light = ((ground - DARKEST) / (LIGHTEST - DARKEST)).clamp(0, 1)
    full = (1 - color_distance / PALE).clamp(0, 1)
    return SIZE_WEIGHT * size + ROOM_WEIGHT * room + full + evenness * light


def _measure(rgb: np.ndarray, seen: list[ReadObject]) -> tuple[float, ...]:
    """Radius, gap, colour distance, evenness and grey level of a picture (64, 64, 3), 0 to 255."""
    objects = [o for o in seen if o.shape is not None]
    nothing = np.zeros((IMAGE_SIZE, IMAGE_SIZE))
    covers = [coverage(str(o.shape), o.x, o.y, o.r) for o in objects]
    odd = [_box_mask(o.box) for o in seen if o.shape is None]
    ground = _ground(rgb, np.max([nothing, *covers, *odd], axis=0))
    if not objects:
        return 0.0, 0.0, 1.0, *ground
    radius = sum(o.r for o in objects) / len(objects)
    distances = []
    for i, one in enumerate(objects):
        hidden = np.max([nothing, *covers[i + 1 :]], axis=0) > 0
        distances.append(_color_distance(rgb, one, np.where(hidden, 0.0, covers[i])))
    return radius, least_gap(objects), sum(distances) / len(distances), *ground


def least_gap(objects: Sequence) -> float:
    """The least gap in px between the circles of objects (`x`, `y`, `r`), or to the border."""
    gaps = [min(o.x, o.y, IMAGE_SIZE - o.x, IMAGE_SIZE - o.y) - o.r for o in objects]
    for i, a in enumerate(objects):
        gaps += [math.hypot(a.x - b.x, a.y - b.y) - a.r - b.r for b in objects[:i]]
    return float(min(gaps))


def _color_distance(rgb: np.ndarray, one: ReadObject, cover: np.ndarray) -> float:
    """Mean distance to its colour of an object's pixels that show it, a pixel from any edge."""
    color = np.array(COLORS[one.color]) if one.color else None
    if color is None:
        return 1.0
    offset = rgb - color
    white = ((rgb - 255.0) ** 2).sum(-1) < (offset**2).sum(-1)  # a band or square of a texture
    own = (cover > 0.5) & ~(white & (one.texture != "solid"))
    core = ndimage.binary_erosion(own, np.ones((3, 3)))
    chosen = np.asarray(core if core.any() else own, bool)
    if not chosen.any():
        return 1.0
    return float(np.sqrt((offset[chosen] ** 2).sum(-1)).mean() / FARTHEST)


def _box_mask(box: tuple[float, float, float, float]) -> np.ndarray:
    mask = np.zeros((IMAGE_SIZE, IMAGE_SIZE))
    left, top, right, bottom = (int(edge) for edge in box)
    mask[top:bottom, left:right] = 1
    return mask


def _ground(rgb: np.ndarray, cover: np.ndarray) -> tuple[float, float]:
    """Evenness and grey level of the pixels farther than 2 px from all that was found.

    The deviation is the root mean square from the median colour, of which the level is the mean.
    """
    ground = rgb[ndimage.maximum_filter(cover, 5) < 0.02]
    if not len(ground):
        return 0.0, 0.0
    middle = np.median(ground, axis=0)
    deviation = float(np.sqrt(((ground - middle) ** 2).mean()))
    return max(0.0, 1 - deviation / MOST_UNEVEN), float(middle.mean())
