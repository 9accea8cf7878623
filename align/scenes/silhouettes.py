"""Analytic silhouettes and texture patterns of the scenes world, as the verifier fits them.

Independent of the renderer on purpose: smooth in centre and radius, and fast for many candidates.
"""

import math
from functools import lru_cache

import numpy as np
from scipy import fft

from align.scenes.grammar import SHAPES

IMAGE_SIZE = 64
PIXELS = np.arange(IMAGE_SIZE, dtype=np.float32) + 0.5  # pixel centres
BAND_WIDTHS = (4, 5, 6)  # max(4, round(r / 3)) for r up to 19
RADII = np.array([7, 8, 9, 10, 11, 12, 13.5, 15, 16.5, 18], dtype=np.float32)


def _ramp(distance: np.ndarray) -> np.ndarray:
    """Coverage of a pixel centred `distance` px outside (negative: inside) a straight edge."""
    return np.clip(0.5 - distance, 0.0, 1.0)


def coverage(shape: str, x, y, r, xs: np.ndarray = PIXELS, ys: np.ndarray = PIXELS) -> np.ndarray:
    """Share of each pixel that a shape covers.

    Args:
        shape: one of `SHAPES`.
        x, y, r: centre and radius in pixels, scalars or arrays (n,).
        xs, ys: centres of the pixel columns and rows.

    Returns:
        float array ([n,] rows, columns) in [0, 1], anti-aliased over one pixel.
    """
    x, y, r = (np.asarray(v, dtype=np.float32)[..., None, None] for v in (x, y, r))
    dx, dy = xs[None, :] - x, ys[:, None] - y
    if shape == "square":
        return _ramp(np.abs(dx) - 0.86 * r) * _ramp(np.abs(dy) - 0.86 * r)
    if shape == "cross":
        dx, dy = np.abs(dx), np.abs(dy)
        upright = _ramp(dx - 0.33 * r) * _ramp(dy - r)
        return np.maximum(upright, _ramp(dx - r) * _ramp(dy - 0.33 * r))
    if shape == "triangle":
        slope = math.cos(math.pi / 6) * np.abs(dx) - 0.5 * dy
        return _ramp(np.maximum(slope, dy) - 0.5 * r)
    if shape == "star":
        return _ramp(_star_distance(dx, dy, r))
    distance = np.hypot(dx, dy)
    outer = _ramp(distance - r)
    return outer if shape == "circle" else outer - _ramp(distance - 0.55 * r)


def _star_distance(dx: np.ndarray, dy: np.ndarray, r: np.ndarray) -> np.ndarray:
    """Signed distance to the nearest edge line of a five-pointed star, point up."""
    half = math.pi / 5  # a tenth of a turn: from a point to the next notch
    nx, ny = 0.45 * math.sin(half), 1 - 0.45 * math.cos(half)  # edge normal, up to length
    length = math.hypot(nx, ny)
    nx, ny = ny / length, nx / length
    # of the five axes through a point, the one a pixel is nearest to decides its edge
    dx = np.abs(dx)
    along, across = -dy, dx
    for turn in (2 * half, 4 * half):
        a = -dy * math.cos(turn) + dx * math.sin(turn)
        c = np.abs(dx * math.cos(turn) + dy * math.sin(turn))
        nearer = a > along
        along, across = np.where(nearer, a, along), np.where(nearer, c, across)
    return nx * across + ny * (along - r)


def _patterns(width: int) -> np.ndarray:
    """All phases of bands of `width` px, (2 width, 64); +1 is the colour, -1 is white."""
    phase = np.arange(2 * width)[:, None]
    bands = (np.arange(IMAGE_SIZE)[None, :] + phase) // width
    return np.where(bands % 2 == 0, 1.0, -1.0).astype(np.float32)


PATTERNS = {width: _patterns(width) for width in BAND_WIDTHS}


@lru_cache(maxsize=1)
def silhouette_bank() -> tuple[np.ndarray, np.ndarray]:
    """Spectra of silhouettes of all shapes and `RADII`, to correlate pictures with.

    Returns:
        complex array (shape, radius, 64, 33): conjugate spectra of silhouettes centred at (0, 0);
        float array (radius, 64, 64): 0 where the centre leaves the shape in the picture (with 2 px
        to spare), -inf elsewhere.
    """
    middle = np.full(len(RADII), IMAGE_SIZE // 2 + 0.5)
    full = np.stack([coverage(shape, middle, middle, RADII) for shape in SHAPES])
    rolled = np.roll(full, (-(IMAGE_SIZE // 2),) * 2, axis=(2, 3))
    spectra = np.conj(fft.rfft2(rolled))  # pyright: ignore  # scipy declares its dispatch, not ours
    reach = np.minimum(PIXELS, IMAGE_SIZE - PIXELS)
    room = np.minimum(reach[:, None], reach[None, :])
    allowed = np.where(room >= RADII[:, None, None] - 2, 0.0, -np.inf)
    return spectra.astype(np.complex64), allowed.astype(np.float32)
