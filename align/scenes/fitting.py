"""Fitting coloured silhouettes to the pixels of a scenes picture.

Colours are unmixed from background and white, silhouettes are proposed by correlation, and each
proposal is fitted: first its texture, then centre and radius by Gauss-Newton.
"""

from dataclasses import dataclass

import numpy as np
from scipy import fft, ndimage

from align.scenes.grammar import COLORS, SHAPES
from align.scenes.silhouettes import (
    BAND_WIDTHS,
    IMAGE_SIZE,
    PATTERNS,
    PIXELS,
    RADII,
    coverage,
    silhouette_bank,
)

WHITE = 255.0
PALETTE = np.array(list(COLORS.values()), dtype=np.float32)
BLACK = list(COLORS).index("black")
NOISE = 6.0  # grey levels; how far white and background must differ to be told apart
COLORED = 0.35  # amount of a colour from which a pixel counts as coloured
MIN_TEXTURE = 0.35  # -1 to 1: agreement of an object's pixels with its best texture
MIN_PURE = 8  # pixels away from edges that an object's own colour is measured on
MIN_PIXELS = 8  # pixels of a colour below which it is not looked for
MIN_GAIN = 20.0  # px; the smallest object, a star of r = 7, covers 65
SURE_MISFIT = 0.02  # share left unexplained that no wrong shape gets down to
GOOD_MISFIT = 0.1  # share left unexplained up to which no other way to fit is tried
MAX_PER_COLOR = 6
MAX_FAILURES = 2  # fits of one colour that explain too little before it is given up
TEXTURED_RADIUS = 12.0  # px; nothing smaller has bands or squares
OBJECT_PENALTY = 4e5  # squared grey levels that one more object must explain


@dataclass(frozen=True)
class Picture:
    """The pixels and what colour unmixing says about them."""

    rgb: np.ndarray  # (64, 64, 3), 0 to 255
    background: np.ndarray  # (3,)
    nearest: np.ndarray  # (64, 64) palette index
    amount: np.ndarray  # (64, 64) of that colour, 0 (background or white) to 1
    whiteness: np.ndarray  # (64, 64) -1 background, +1 white, between: cannot tell

    def own(self, color: int) -> np.ndarray:
        """Mask (64, 64) of the pixels that mostly have one colour."""
        return (self.nearest == color) & (self.amount > COLORED)


@dataclass(frozen=True)
class Fit:
    """A fitted object; `paint` is its colour at every pixel, `cover` its silhouette."""

    color: int
    shape: str
    texture: str | None
    x: float
    y: float
    r: float
    paint: np.ndarray  # (64, 64, 3)
    cover: np.ndarray  # (64, 64)
    error: float  # squared grey levels left over the whole picture
    misfit: float  # the same about the object, as a share of what there was to explain


def composite(backdrop: np.ndarray, fits: list[Fit]) -> np.ndarray:
    """The picture (64, 64, 3) of objects, rearmost first, over a backdrop (3,) or (64, 64, 3)."""
    image = np.broadcast_to(backdrop, (IMAGE_SIZE, IMAGE_SIZE, 3)).astype(np.float32)
    for fit in fits:
        image = image + fit.cover[..., None] * (fit.paint - image)
    return image


def _segment_distance(rgb: np.ndarray, start: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Position on and squared distance to the lines from `start` to each palette colour."""
    line = PALETTE - start  # (8, 3)
    offset = rgb - start
    along = np.clip(offset @ (line / (line**2).sum(1, keepdims=True)).T, 0, 1)  # (64, 64, 8)
    square = (offset**2).sum(-1, keepdims=True)
    # |offset - along * line|^2 without the (64, 64, 8, 3) array
    return along, square - 2 * along * (offset @ line.T) + along**2 * (line**2).sum(1)


def unmix(rgb: np.ndarray) -> Picture:
    """Explain every pixel (64, 64, 3) as one palette colour mixed with background or white."""
    frame = np.concatenate([rgb[0], rgb[-1], rgb[1:-1, 0], rgb[1:-1, -1]])
    background = np.median(frame, axis=0)
    amount, to_background = _segment_distance(rgb, background)
    _, to_white = _segment_distance(rgb, np.full(3, WHITE, dtype=np.float32))
    nearest = np.minimum(to_background, to_white).argmin(-1)
    pick = nearest[..., None]
    amount, to_background, to_white = (
        np.take_along_axis(a, pick, -1)[..., 0] for a in (amount, to_background, to_white)
    )
    # of greys, black among them, only the lightness tells how much is white
    lightness = ((rgb - background) ** 2).sum(-1) - ((rgb - WHITE) ** 2).sum(-1)
    grey = (nearest == BLACK) | (amount < 0.2)
    likelihood = np.where(grey, lightness, to_background - to_white)
    whiteness = np.clip(likelihood / (2 * NOISE**2), -1, 1)
    return Picture(rgb, background, nearest, amount, whiteness)


def _evidence(picture: Picture, color: int, visible: np.ndarray) -> np.ndarray:
    """For every pixel -2 (outside any object of this colour) to 1 (inside); 0 where hidden."""
    evidence = picture.amount + (1 - picture.amount) * picture.whiteness
    other = (picture.nearest != color) & (picture.amount > COLORED)
    evidence = np.where(other, -1.0, evidence) * visible
    # what lies outside counts double, or one big silhouette beats the small ones it would cover
    return np.where(evidence < 0, 2 * evidence, evidence)


def _propose(
    evidence: np.ndarray, nearby: int, least_r: float
) -> list[tuple[float, str, float, float, float]]:
    """The best silhouette of every shape near the best of all: (gain in px, shape, x, y, r)."""
    spectra, allowed = silhouette_bank()
    first = int(np.searchsorted(RADII, least_r))
    spectrum = fft.rfft2(evidence.astype(np.float32))
    gains = fft.irfft2(spectrum * spectra[:, first:], s=(IMAGE_SIZE, IMAGE_SIZE)) + allowed[first:]
    top = gains.max(axis=(0, 1))
    row, column = np.unravel_index(top.argmax(), top.shape)
    first_row, first_column = max(row - nearby, 0), max(column - nearby, 0)
    found = []
    for index, shape in enumerate(SHAPES):
        near = gains[index, :, first_row : row + nearby + 1, first_column : column + nearby + 1]
        k, i, j = np.unravel_index(near.argmax(), near.shape)
        x, y = float(PIXELS[j + first_column]), float(PIXELS[i + first_row])
        found.append((float(near[k, i, j]), shape, x, y, float(RADII[first + k])))
    return sorted(found, reverse=True)


def _texture(colored: np.ndarray, weight: np.ndarray, r: float) -> tuple[str, float, np.ndarray]:
    """The texture that explains where colour and white lie inside a silhouette.

    Args:
        colored: (64, 64), 0 white to 1 colour.
        weight: (64, 64) visible silhouette.
        r: radius, which fixes the width of bands and squares.

    Returns:
        name, agreement in [-1, 1], pattern (64, 64) with 1 for colour and 0 for white.
    """
    signed = (2 * colored - 1) * weight
    total = max(float(weight.sum()), 1.0)
    best = ("solid", float(signed.sum()) / total, np.ones_like(colored))
    for width in BAND_WIDTHS:
        if abs(width - r / 3) > 1.0:
            continue
        bands = PATTERNS[width]
        stripes = bands @ signed.sum(axis=0) / total
        if stripes.max() > best[1]:
            pattern = np.broadcast_to(bands[stripes.argmax()], colored.shape)
            best = ("striped", float(stripes.max()), pattern > 0)
        checks = bands @ signed @ bands.T / total  # (row phase, column phase)
        if checks.max() > best[1]:
            i, j = np.unravel_index(checks.argmax(), checks.shape)
            best = ("checkered", float(checks.max()), np.outer(bands[i], bands[j]) > 0)
    return best[0], best[1], best[2].astype(np.float32)


def paint(rgb, color: int, shape: str, x, y, r, visible, away: int = 1):
    """Texture (None: none fits) and colour (64, 64, 3) at every pixel of a silhouette.

    `away` = 3 measures the colour a pixel away from edges, which in a blurred picture wash it out.
    """
    line = PALETTE[color] - WHITE
    colored = np.clip((rgb - WHITE) @ line / (line @ line), 0, 1)
    inside = coverage(shape, x, y, r) * visible
    texture, agreement, pattern = _texture(colored, inside, r)
    pure = inside * pattern > 0.8
    if away > 1:
        pure = ndimage.binary_erosion(pure, np.ones((away, away)))
    mean = rgb[pure].mean(0) if pure.sum() >= MIN_PURE else PALETTE[color]
    colors = WHITE + pattern[..., None] * (mean - WHITE)
    return (texture if agreement >= MIN_TEXTURE else None), colors


def _refine(shape, x, y, r, target, weight, steps: int) -> tuple[float, float, float]:
    """Gauss-Newton on centre and radius so that the silhouette matches `target` coverage."""
    reach = r + 5
    rows = slice(max(int(y - reach), 0), min(int(y + reach) + 1, IMAGE_SIZE))
    columns = slice(max(int(x - reach), 0), min(int(x + reach) + 1, IMAGE_SIZE))
    target, weight = target[rows, columns], weight[rows, columns].reshape(-1)
    h = 0.3
    move = np.array([[0, h, -h, 0, 0, 0, 0], [0, 0, 0, h, -h, 0, 0], [0, 0, 0, 0, 0, h, -h]])
    for _ in range(steps):
        px, py, pr = np.array([[x], [y], [r]]) + move
        cover = coverage(shape, px, py, pr, PIXELS[columns], PIXELS[rows])
        slopes = ((cover[1::2] - cover[2::2]) / (2 * h)).reshape(3, -1)
        weighted = slopes * weight
        normal = weighted @ slopes.T + np.eye(3) * (1e-3 * weight.mean() + 1e-9)
        step = np.linalg.solve(normal, weighted @ (target - cover[0]).reshape(-1))
        step = np.clip(step, -1.5, 1.5)
        x, y, r = x + step[0], y + step[1], np.clip(r + step[2], 5.0, 22.0)
        if np.abs(step).max() < 0.03:
            break
    return float(x), float(y), float(r)


def fit(rgb, color: int, backdrop, visible, start, steps: int = 4) -> Fit:
    """Fit one proposed silhouette (shape, x, y, r) to the visible pixels before a backdrop."""
    shape, x, y, r = start
    for _ in range(2):  # a better silhouette reads the texture better
        texture, colors = paint(rgb, color, shape, x, y, r, visible)
        contrast = colors - backdrop
        square = (contrast**2).sum(-1) + 1e-3
        target = ((rgb - backdrop) * contrast).sum(-1) / square
        weight = square * visible / 1e4
        x, y, r = _refine(shape, x, y, r, np.clip(target, -0.2, 1.2), weight, steps)
    cover = coverage(shape, x, y, r)
    error = ((rgb - backdrop - cover[..., None] * contrast) ** 2).sum(-1) * visible
    near = ndimage.maximum_filter(cover, 5) > 0.5
    before = ((rgb - backdrop) ** 2).sum(-1) * visible
    misfit = float(error[near].sum() / (before[near].sum() + 1.0))
    return Fit(color, shape, texture, x, y, r, colors, cover, float(error.sum()), misfit)


def fit_color(picture: Picture, color: int, backdrop, visible, nearby: int) -> list[Fit]:
    """Find all objects of one colour, the one that explains most first.

    Args:
        backdrop: (64, 64, 3), what the objects stand before.
        visible: (64, 64), 0 where something nearer may hide them, else 1.
        nearby: px; how far the centres of the best silhouettes of different shapes may differ.
    """

    def try_all(evidence: np.ndarray, share: float, least_r: float) -> list[Fit]:
        proposals = _propose(evidence, nearby, least_r)
        least = max(MIN_GAIN, share * proposals[0][0])
        tried: list[Fit] = []
        for gain, *start in proposals:
            if gain < least or (tried and tried[-1].misfit < SURE_MISFIT):
                break
            tried.append(fit(rgb, color, backdrop, visible, start))
        return tried

    own = picture.own(color) & (visible > 0)
    rgb = np.where((own | (picture.amount <= COLORED))[..., None], picture.rgb, backdrop)
    evidence = _evidence(picture, color, visible)
    filled = ndimage.binary_closing(np.pad(own, 8), np.ones((7, 7)))[8:-8, 8:-8]
    coloured = picture.amount > COLORED
    found: list[Fit] = []
    failures = 0
    while len(found) < MAX_PER_COLOR and failures < MAX_FAILURES:
        if (own & (evidence > -1)).sum() < MIN_PIXELS:
            break
        tried = try_all(evidence, 0.7, float(RADII[0]))
        if min((f.misfit for f in tried), default=1.0) > GOOD_MISFIT:
            # blurred white bands look like background: count what colour surrounds as inside,
            # and hold little against a silhouette that its edge may look like background too
            textured = np.where(filled, 1.0, np.where(coloured, evidence, evidence / 3))
            tried += try_all(textured, 0.5, TEXTURED_RADIUS)
        if not tried:
            break
        best = min(tried, key=lambda f: f.error)
        taken = best.cover > 0.3
        evidence = np.where(taken, -2.0, evidence)
        filled = filled & ~taken  # pyright: ignore  # scipy's annotations are too wide
        after = composite(backdrop, [best])
        gain = ((rgb - backdrop) ** 2 - (rgb - after) ** 2).sum(-1)
        if gain[own].sum() > OBJECT_PENALTY:
            found.append(best)
            backdrop = after
        else:
            failures += 1
    return found
