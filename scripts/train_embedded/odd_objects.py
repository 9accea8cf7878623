"""Objects that are no known object, drawn into renders: what a half-done generation looks like.

A picture's labels are rows (colour, shape, texture, x, y, r, depth): indices into the grammar's
lists, one past the end for "none of them", -1 for unknown; pixels; the rank from the rear.
"""

import colorsys
import math
import random

import numpy as np

from align.scenes.grammar import COLORS, SHAPES, TEXTURES, Scene, SceneObject
from align.scenes.render import BACKGROUND, IMAGE_SIZE, OVERSAMPLING, inside

NO_COLOR, NO_SHAPE = len(COLORS), len(SHAPES)
PALETTE = np.array(list(COLORS.values()), float)
FAR = 75.0  # grey levels (Euclidean) from every colour of the palette
SMALLEST = 2.0  # px; a radius below is a speck that no label names


def scene_labels(scene: Scene) -> list[tuple]:
    """The rows of a placed scene."""
    return [
        (list(COLORS).index(o.color), SHAPES.index(o.shape), TEXTURES.index(str(o.texture)),
         o.x, o.y, o.r, o.depth)
        for o in scene.objects
    ]  # fmt: skip


def reach(shape: str, angles: np.ndarray) -> np.ndarray:
    """Distance from the centre to the outline of a shape of radius 1 in each direction."""
    thing = SceneObject("red", shape, r=1.0)
    distances = np.linspace(0.05, 1.3, 126)[:, None]
    hit = inside(thing, distances * np.cos(angles), distances * np.sin(angles))
    return np.where(hit, distances, 0).max(0)


_ANGLES = np.linspace(-math.pi, math.pi, 181)
_REACH = {shape: reach(shape, _ANGLES) for shape in SHAPES}


def odd_outline(rng: random.Random) -> np.ndarray:
    """Reach by direction of something between two shapes, a blob, or a shape out of proportion."""
    kind = rng.random()
    if kind < 0.5:
        a, b = rng.sample([s for s in SHAPES if s != "ring"], 2)
        share = rng.uniform(0.38, 0.62)
        return share * _REACH[a] + (1 - share) * _REACH[b]
    if kind < 0.8:
        waves = [(rng.uniform(0.1, 0.35) / n**0.5, n, rng.uniform(-3, 3)) for n in (1, 2, 3, 5)]
        return np.clip(0.8 + sum(s * np.cos(n * _ANGLES + p) for s, n, p in waves), 0.2, 1.2)
    shape = rng.choice(SHAPES)
    turned = np.roll(_REACH[shape], rng.randrange(180))
    flat = rng.uniform(0.4, 0.6)  # an ellipse's reach, so that all is squeezed one way
    tilt = _ANGLES - rng.uniform(-3, 3)
    return turned * flat / np.hypot(flat * np.cos(tilt), np.sin(tilt))


def odd_color(rng: random.Random) -> np.ndarray:
    """RGB, 0 to 255, far from every colour of the palette and from the ground."""
    while True:
        if rng.random() < 0.5:
            a, b = rng.sample(range(len(PALETTE)), 2)
            color = PALETTE[a] + rng.uniform(0.4, 0.6) * (PALETTE[b] - PALETTE[a])
        else:
            hue = colorsys.hsv_to_rgb(rng.random(), rng.uniform(0, 1), rng.uniform(0.3, 1))
            color = 255 * np.array(hue)
        grounds = np.array([np.full(3, level) for level in BACKGROUND])
        if min(np.linalg.norm(np.vstack([PALETTE, grounds]) - color, axis=1)) > FAR:
            return color


def cover(outline: np.ndarray, hole: float, x: float, y: float, r: float) -> np.ndarray:
    """Share (64, 64) of each pixel inside an outline about (x, y)."""
    axis = (np.arange(IMAGE_SIZE * OVERSAMPLING) + 0.5) / OVERSAMPLING
    dx, dy = axis[None, :] - x, axis[:, None] - y
    distance = np.hypot(dx, dy)
    limit = r * np.interp(np.arctan2(dy, dx), _ANGLES, outline)
    hit = (distance <= limit) & (distance >= hole * limit)
    return hit.reshape(IMAGE_SIZE, OVERSAMPLING, IMAGE_SIZE, OVERSAMPLING).mean((1, 3))


def add_odd(image: np.ndarray, rows: list[tuple], rng: random.Random) -> None:
    """Draw one odd object into free ground of `image` (uint8, in place) and append its row.

    Of colour, shape or both unknown; or a speck, which has no row. Nothing where there is no room.
    """
    speck = rng.random() < 0.3
    r = rng.uniform(0.8, 1.7) if speck else rng.uniform(SMALLEST + 0.5, 13)
    for _ in range(12):
        x, y = rng.uniform(r + 1, 63 - r), rng.uniform(r + 1, 63 - r)
        if all(math.hypot(x - row[3], y - row[4]) > r + row[5] + 2 for row in rows):
            break
    else:
        return
    kind = rng.choice(("shape", "shape", "color", "both"))
    color_index, shape_index = rng.randrange(NO_COLOR), rng.randrange(NO_SHAPE)
    outline, hole = _REACH[SHAPES[shape_index]], 0.55 if SHAPES[shape_index] == "ring" else 0.0
    if kind != "color" or r < 5:  # nobody could tell the shape of so small a thing
        outline, shape_index = odd_outline(rng), NO_SHAPE
        hole = rng.choice((0.0, 0.0, 0.0, 0.5))
    color = PALETTE[color_index]
    if kind != "shape":
        color, color_index = odd_color(rng), NO_COLOR
    share = cover(outline, hole, x, y, r)[..., None]
    image[:] = np.rint(image + share * (color - image)).astype(np.uint8)
    if not speck:
        rows.append((color_index, shape_index, -1, x, y, r, len(rows)))
