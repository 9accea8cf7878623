"""Reading a picture of the scenes world back into objects, without any network.

Analysis by synthesis: objects of every colour are fitted, touching colours in both depth orders,
and whatever the rendered result leaves unexplained is reported as an object without a shape.
"""

from dataclasses import dataclass, replace

import numpy as np
from scipy import ndimage

from align.scenes.fitting import (
    GOOD_MISFIT,
    MIN_PIXELS,
    OBJECT_PENALTY,
    PALETTE,
    SURE_MISFIT,
    WHITE,
    Fit,
    Picture,
    composite,
    fit,
    fit_color,
    paint,
    unmix,
)
from align.scenes.grammar import COLORS
from align.scenes.silhouettes import IMAGE_SIZE

MAX_OBJECTS = 8  # twice what a scene has; beyond that nothing is worth a second look
SMALL_BELOW = 12.0  # px; the sizes leave 10 to 14 free
MIN_FIT = 0.80  # an object that agrees less with its pixels is malformed
MAX_COLOR_SHIFT = 60.0  # grey levels (Euclidean) between an object's mean colour and the palette
STRAY_LEVEL, STRAY_AREA = 32.0, 10  # an unexplained blob: grey levels (3x3 mean) and px
BLURS = (0.0, 0.6, 1.0, 1.5)  # px; how far a picture may be blurred and still be read
TO_YCC = np.array(
    [[0.299, 0.587, 0.114], [-0.169, -0.331, 0.5], [0.5, -0.419, -0.081]], dtype=np.float32
).T


@dataclass(frozen=True)
class ReadObject:
    """An object found in a picture; `shape` and `texture` are None where nothing known fits."""

    color: str | None
    shape: str | None
    texture: str | None
    size: str  # "small" or "large" by the radius
    box: tuple[float, float, float, float]  # left, top, right, bottom in pixels
    x: float  # centre in pixels from the left edge
    y: float  # from the top edge
    r: float  # radius in pixels
    depth: int  # 0 is rearmost; tells only between objects that overlap
    fit: float  # agreement of the pixels about the object with the fitted picture, 0 to 1


def _cost(picture: Picture, fits: list[Fit]) -> float:
    """Squared grey levels that fitted objects leave unexplained, and a price for every object."""
    error = ((picture.rgb - composite(picture.background, fits)) ** 2).sum()
    return float(error) + OBJECT_PENALTY * len(fits)


def _visible(front: np.ndarray, seam: int) -> np.ndarray:
    """Where nothing nearer hides an object: 1, else 0; `seam` px about an edge may be blurred."""
    return np.where(ndimage.maximum_filter(front, seam) > 0.02, 0.0, 1.0)


def _needed(picture: Picture, fits: list[Fit]) -> list[Fit]:
    """Leave out what others explain as well: two colours, say, that share one object's pixels."""
    cost = _cost(picture, fits)
    for one in list(fits):
        rest = [other for other in fits if other is not one]
        without = _cost(picture, rest)
        if without < cost:
            fits, cost = rest, without
    return fits


def _order_touching(picture: Picture, layers: dict[int, list[Fit]]) -> list[Fit]:
    """Settle which colour lies in front where two meet; return all fits, rearmost first."""
    alone, order = layers, list(layers)
    if sum(map(len, alone.values())) > MAX_OBJECTS:
        return [f for c in order for f in layers[c]]

    def total(candidate: dict[int, list[Fit]], sequence: list[int]) -> float:
        return _cost(picture, [f for c in sequence for f in candidate[c]])

    for a in alone:
        front = np.max([f.cover for f in alone[a]], axis=0, initial=0.0)
        for b in alone:
            # white bands may lie between; look farther where a colour is not explained yet
            clear = alone[b] and max(f.misfit for f in alone[b]) < GOOD_MISFIT
            reach = ndimage.maximum_filter(front, 5 if clear else 13) > 0.5
            if a == b or (reach & picture.own(b)).sum() < MIN_PIXELS:
                continue
            others = [f for c in order if c not in (a, b) for f in layers[c]]
            backdrop = composite(picture.background, others)
            sequence = [b] + [c for c in order if c != b]
            for seam in (5, 1):
                rear = fit_color(picture, b, backdrop, _visible(front, seam), 12)
                trial = {**layers, a: alone[a], b: rear}
                if total(trial, sequence) < total(layers, order):
                    layers, order = trial, sequence
                if rear and max(f.misfit for f in rear) < GOOD_MISFIT:
                    break  # else a little more may have to be seen of a small object
    return [f for c in order for f in layers[c]]


def _close(a: Fit, b: Fit) -> bool:
    """Whether the silhouettes of two objects may touch (a square's corners lie 1.22 r away)."""
    return bool(np.hypot(a.x - b.x, a.y - b.y) < 1.22 * (a.r + b.r) + 2)


def _polish(picture: Picture, fits: list[Fit]) -> list[Fit]:
    """Fit every object once more, now that what lies behind and before it is known."""
    fits = list(fits)
    for i, one in enumerate(fits):
        backdrop = composite(picture.background, fits[:i])
        front = np.zeros((IMAGE_SIZE, IMAGE_SIZE))
        for nearer in fits[i + 1 :]:
            front = np.maximum(front, nearer.cover)
        visible = _visible(front, 3)
        place = (one.shape, one.x, one.y, one.r)
        sure = one.misfit < SURE_MISFIT
        if not sure or any(_close(one, other) for other in fits if other is not one):
            one = fit(picture.rgb, one.color, backdrop, visible, place, steps=2)
            place = (one.shape, one.x, one.y, one.r)
        texture, colors = paint(picture.rgb, one.color, *place, visible, away=3)
        fits[i] = replace(one, texture=texture, paint=colors)
    return fits


def _soften(picture: Picture, fits: list[Fit]) -> np.ndarray:
    """The fitted picture, as blurred as the real one: apart in luma and chroma, as in JPEG."""
    model, pixels = composite(picture.background, fits) @ TO_YCC, picture.rgb @ TO_YCC
    best = model.copy()
    for channels in (slice(0, 1), slice(1, 3)):
        lowest = np.inf
        for sigma in BLURS:
            soft = ndimage.gaussian_filter(model[..., channels], (sigma, sigma, 0))
            error = ((pixels[..., channels] - soft) ** 2).sum()
            if error < lowest:
                lowest, best[..., channels] = error, soft
    return best @ np.linalg.inv(TO_YCC)


def _agreement(picture: Picture, fits: list[Fit], index: int, soft: np.ndarray) -> float:
    """How well the pixels about one object agree with the fitted picture: 0 not at all, 1 fully."""
    others = composite(picture.background, fits[:index] + fits[index + 1 :])
    near = ndimage.maximum_filter(fits[index].cover, 5) > 0.5
    seen, made = (picture.rgb - others)[near], (soft - others)[near]
    return float(1 - ((seen - made) ** 2).sum() / ((seen**2).sum() + (made**2).sum() + 1.0))


def _settle(picture: Picture, fits: list[Fit]) -> tuple[list[Fit], list[float], np.ndarray]:
    """Polish the fits and drop what fits badly, worst first.

    That is no object: a blurred seam between two colours, perhaps; if not, `_strays` reports it.
    """
    while True:
        if len(fits) <= MAX_OBJECTS:
            fits = _polish(picture, _needed(picture, fits))
        soft = _soften(picture, fits)
        agreements = [_agreement(picture, fits, i, soft) for i in range(len(fits))]
        bad = sorted((a, i) for i, a in enumerate(agreements) if a < MIN_FIT)
        if not bad:
            return fits, agreements, soft
        dropped = {i for _, i in bad[: (len(bad) + 2) // 3]}
        fits = [one for i, one in enumerate(fits) if i not in dropped]


def _strays(picture: Picture, fits: list[Fit], soft: np.ndarray) -> list[ReadObject]:
    """Blobs that the fitted objects do not explain."""
    # scipy's annotations are too narrow here, and too wide at `label`
    level = np.abs(ndimage.uniform_filter(picture.rgb - soft, (3, 3, 1))).max(-1)  # pyright: ignore
    sharp = composite(picture.background, fits)
    span = ndimage.maximum_filter(sharp, (3, 3, 1)) - ndimage.minimum_filter(sharp, (3, 3, 1))
    # an object's own colour may be a little off
    inside = np.max([one.cover for one in fits], axis=0, initial=0.0) > 0.5
    wrong = level > np.where(inside, MAX_COLOR_SHIFT, STRAY_LEVEL)
    labels, _ = ndimage.label(wrong & (span.max(-1) < STRAY_LEVEL))  # pyright: ignore
    found = []
    for index, (rows, columns) in enumerate(ndimage.find_objects(labels), start=1):
        area = int((labels[rows, columns] == index).sum())
        if area >= STRAY_AREA:
            box = (columns.start, rows.start, columns.stop, rows.stop)
            r = (area / np.pi) ** 0.5
            x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
            size = "small" if r < SMALL_BELOW else "large"
            found.append(ReadObject(None, None, None, size, box, x, y, r, 0, 0.0))
    return found


def _box(one: Fit) -> tuple[float, float, float, float]:
    """Left, top, right, bottom of a fitted silhouette in pixels."""
    left = right = top = bottom = one.r
    if one.shape == "square":
        left = right = top = bottom = 0.86 * one.r
    elif one.shape == "triangle":
        left = right = 0.75**0.5 * one.r
        bottom = 0.5 * one.r
    elif one.shape == "star":
        left = right = np.sin(0.4 * np.pi) * one.r
        bottom = np.cos(0.2 * np.pi) * one.r
    return one.x - left, one.y - top, one.x + right, one.y + bottom


def _report(one: Fit, depth: int, agreement: float) -> ReadObject:
    pure = (one.cover > 0.5) & (one.paint.min(-1) < 250)
    shade = one.paint[pure].mean(0) if pure.any() else np.full(3, WHITE)
    shift = np.linalg.norm(PALETTE - shade, axis=1)
    nearest = int(shift.argmin())
    return ReadObject(
        color=list(COLORS)[nearest] if shift[nearest] < MAX_COLOR_SHIFT else None,
        shape=one.shape,
        texture=one.texture,
        size="small" if one.r < SMALL_BELOW else "large",
        box=_box(one),
        x=one.x,
        y=one.y,
        r=one.r,
        depth=depth,
        fit=agreement,
    )


def read(image) -> list[ReadObject]:
    """Read a picture back into objects.

    Args:
        image: uint8 array or tensor (64, 64, 3), or float (3, 64, 64) in [0, 1].

    Returns:
        the objects, rearmost first; blobs that no known object explains come last, with `shape`
        (and perhaps `color`) None.

    Raises:
        ValueError: another shape or type of image.
    """
    picture = unmix(as_rgb(image))
    strong = picture.nearest[picture.amount > 0.6]
    present = np.flatnonzero(np.bincount(strong, minlength=len(PALETTE)) >= MIN_PIXELS)
    ground = composite(picture.background, [])
    everywhere = np.ones((IMAGE_SIZE, IMAGE_SIZE))
    layers = {int(c): fit_color(picture, int(c), ground, everywhere, 6) for c in present}
    fits, agreements, soft = _settle(picture, _order_touching(picture, layers))
    objects = [_report(one, i, agreements[i]) for i, one in enumerate(fits)]
    return objects + _strays(picture, fits, soft)


def as_rgb(image) -> np.ndarray:
    """A picture as float array (64, 64, 3), 0 to 255; the forms are those of `read`."""
    pixels = np.asarray(image.detach().cpu() if hasattr(image, "detach") else image)
    if pixels.dtype == np.uint8 and pixels.shape == (IMAGE_SIZE, IMAGE_SIZE, 3):
        return pixels.astype(np.float32)
    if pixels.dtype.kind == "f" and pixels.shape == (3, IMAGE_SIZE, IMAGE_SIZE):
        return np.nan_to_num(pixels.astype(np.float32)).clip(0, 1).transpose(1, 2, 0) * 255
    raise ValueError(
        f"a scenes picture is uint8 (64, 64, 3) or float (3, 64, 64) in [0, 1], got "
        f"{pixels.dtype} {tuple(pixels.shape)}"
    )
