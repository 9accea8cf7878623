"""From a scene to a picture: place what is unsaid (`layout`), then draw it (`render`).

Geometry and colours follow the specification of the scenes world: 64x64 RGB, anti-aliased by 4x4
oversampling, one neutral grey background, every object wholly inside with a margin of 1 px.
"""

# Objects have x, y, r and depth once they are placed; before, these are None.
# pyright: reportOptionalOperand=false, reportOperatorIssue=false, reportArgumentType=false

import math
import random
from dataclasses import replace

import numpy as np

from align.scenes.grammar import COLORS, RELATIONS_3D, Scene, SceneObject

IMAGE_SIZE = 64
OVERSAMPLING = 4
MARGIN = 1.0
GAP = 2.0
WHITE = np.array([255.0, 255.0, 255.0])
BACKGROUND = (225, 245)
RADIUS = {"small": (7.0, 10.0), "large": (14.0, 19.0)}
TEXTURED_RADIUS = 12.0


# --- placing -------------------------------------------------------------------------------------


def radius_range(size: str | None, texture: str, count: int) -> tuple[float, float]:
    """The allowed radii in pixels of an object in a picture of `count` objects."""
    low, high = RADIUS[size] if size else (8.0, 16.0 if count <= 2 else 12.0)
    return (max(low, TEXTURED_RADIUS), high) if texture != "solid" else (low, high)


def _complete(thing: SceneObject, count: int, rng: random.Random, tight: float) -> SceneObject:
    """Choose the texture and radius that `thing` leaves unsaid; `tight` in [0, 1] prefers small."""
    texture = thing.texture
    if texture is None:
        free = "solid" if thing.size == "small" or rng.random() < 0.8 else None
        texture = free or rng.choice(("striped", "checkered"))
    low, high = radius_range(thing.size, texture, count)
    if low > high:
        raise ValueError(f"a {thing.size} object cannot be {texture}: textures need r >= 12 px")
    return replace(thing, texture=texture, r=rng.uniform(low, high - tight * (high - low)))


def relation_holds_2d(kind: str, a: SceneObject, b: SceneObject, margin: float = 6.0) -> bool:
    """Whether `a` stands left of / right of / above / below `b` by at least `margin` px."""
    dx, dy = b.x - a.x, b.y - a.y  # positive: a is to the left of / above b
    horizontal = kind in ("left of", "right of")
    along, across = (dx, dy) if horizontal else (dy, dx)
    if kind in ("right of", "below"):
        along = -along
    return along >= margin and along > abs(across)


def _overlap_pairs(scene: Scene) -> dict[tuple[int, int], tuple[int, int]]:
    """(i, j) with i < j -> (rear, front), for every pair in a 3-D relation."""
    pairs = {}
    for relation in scene.relations:
        if relation.kind in RELATIONS_3D:
            i, j = relation.first, relation.second
            front, rear = (i, j) if relation.kind == "in front of" else (j, i)
            pairs[min(i, j), max(i, j)] = (rear, front)
    return pairs


def _related_position(
    other: SceneObject, kind: str, thing: SceneObject, rng: random.Random, tight: float
) -> tuple[float, float]:
    """A random centre for `thing`, to which `other` then stands in relation `kind`."""
    if kind in RELATIONS_3D:
        angle = rng.uniform(0, 2 * math.pi)
        distance = rng.uniform(0.5, 0.78) * (thing.r + other.r)
    else:
        # where the second object lies seen from the first; y points down
        toward = {"left of": 0.0, "above": 0.5, "right of": 1.0, "below": 1.5}[kind] * math.pi
        side = rng.uniform(-1, 1)
        if rng.random() < tight:  # the diagonal takes the least room along the relation's axis
            side = math.copysign(0.98, side)
        angle = toward + side * 0.25 * math.pi
        nearest = thing.r + other.r + GAP
        distance = nearest + (1 - tight) * rng.random() ** 2 * max(0.0, 50.0 - nearest)
    return other.x + distance * math.cos(angle), other.y + distance * math.sin(angle)


def _place(scene: Scene, rng: random.Random, tight: float) -> list[SceneObject] | None:
    """One attempt at placing all objects; None if some rule fails."""
    things = [_complete(o, len(scene.objects), rng, tight) for o in scene.objects]
    overlaps = _overlap_pairs(scene)
    placed: list[SceneObject] = []
    for index, thing in enumerate(things):
        low, high = MARGIN + thing.r, IMAGE_SIZE - MARGIN - thing.r
        relation = next((r for r in scene.relations if r.second == index), None)
        for _ in range(20):
            x, y = rng.uniform(low, high), rng.uniform(low, high)
            if relation is not None:  # sample where the relation holds instead of hoping for it
                x, y = _related_position(placed[relation.first], relation.kind, thing, rng, tight)
                if not (low <= x <= high and low <= y <= high):
                    continue
            candidate = replace(thing, x=x, y=y)
            if all(
                math.hypot(x - o.x, y - o.y) >= thing.r + o.r + GAP
                for i, o in enumerate(placed)
                if (i, index) not in overlaps
            ):
                placed.append(candidate)
                break
        else:
            return None
    for relation in scene.relations:
        if relation.kind not in RELATIONS_3D and not relation_holds_2d(
            relation.kind, placed[relation.first], placed[relation.second]
        ):
            return None
    order = list(range(len(placed)))
    for rear, front in overlaps.values():
        if order.index(rear) > order.index(front):
            order.remove(rear)
            order.insert(order.index(front), rear)
        area = silhouette(placed[rear])
        hidden = float((area * silhouette(placed[front])).sum())
        if hidden < 15.0 or hidden > 0.5 * float(area.sum()):
            return None
    return [replace(o, depth=order.index(i)) for i, o in enumerate(placed)]


def layout(scene: Scene, rng: random.Random, attempts: int = 1000) -> Scene:
    """Choose everything that `scene` leaves unsaid: texture, radius, position, background.

    Raises:
        ValueError: the scene cannot be placed (for example a small textured object).
    """
    background = scene.background
    if background is None:
        background = rng.randint(*BACKGROUND)
    for attempt in range(attempts):
        placed = _place(scene, rng, tight=min(1.0, 2 * attempt / attempts))
        if placed is not None:
            return replace(scene, objects=tuple(placed), background=background)
    raise ValueError(f"no room for {len(scene.objects)} objects as stated in {scene!r}")


# --- drawing -------------------------------------------------------------------------------------


def _polygon(thing: SceneObject) -> np.ndarray:
    """Corners (n, 2) of a triangle or star about the origin, first corner pointing up."""
    corners = 3 if thing.shape == "triangle" else 10
    angles = -math.pi / 2 + np.arange(corners) * 2 * math.pi / corners
    radii = np.full(corners, thing.r, dtype=float)
    if thing.shape == "star":
        radii[1::2] *= 0.45
    return np.stack([radii * np.cos(angles), radii * np.sin(angles)], axis=1)


def inside(thing: SceneObject, dx: np.ndarray, dy: np.ndarray) -> np.ndarray:
    """Whether points at offset (dx, dy) px from the object's centre belong to its shape."""
    r = thing.r
    if thing.shape == "circle":
        return dx * dx + dy * dy <= r * r
    if thing.shape == "ring":
        square = dx * dx + dy * dy
        return (square <= r * r) & (square >= (0.55 * r) ** 2)
    if thing.shape == "square":
        return (np.abs(dx) <= 0.86 * r) & (np.abs(dy) <= 0.86 * r)
    if thing.shape == "cross":
        bar_x = (np.abs(dx) <= r) & (np.abs(dy) <= 0.33 * r)
        bar_y = (np.abs(dy) <= r) & (np.abs(dx) <= 0.33 * r)
        return bar_x | bar_y
    corners = _polygon(thing)
    crossings = np.zeros(np.broadcast(dx, dy).shape, dtype=bool)
    for (x0, y0), (x1, y1) in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        if y0 != y1:  # even-odd rule
            straddles = (y0 > dy) != (y1 > dy)
            crossings ^= straddles & (dx < (x1 - x0) * (dy - y0) / (y1 - y0) + x0)
    return crossings


def _box(thing: SceneObject) -> tuple[int, int, int, int]:
    """Pixel box (left, top, right, bottom; right and bottom exclusive) that holds the object."""
    left, top = math.floor(thing.x - thing.r), math.floor(thing.y - thing.r)
    right, bottom = math.ceil(thing.x + thing.r), math.ceil(thing.y + thing.r)
    return max(left, 0), max(top, 0), min(right, IMAGE_SIZE), min(bottom, IMAGE_SIZE)


def _coverage(thing: SceneObject) -> np.ndarray:
    """Share of each pixel in the object's box that its shape covers, in [0, 1]."""
    left, top, right, bottom = _box(thing)
    offset = (np.arange(OVERSAMPLING) + 0.5) / OVERSAMPLING
    xs = (np.arange(left, right)[:, None] + offset).reshape(1, -1) - thing.x
    ys = (np.arange(top, bottom)[:, None] + offset).reshape(-1, 1) - thing.y
    hit = inside(thing, xs, ys).reshape(bottom - top, OVERSAMPLING, right - left, OVERSAMPLING)
    return hit.mean(axis=(1, 3))


def silhouette(thing: SceneObject) -> np.ndarray:
    """Coverage (64, 64) in [0, 1] of one placed object, as if nothing stood before it."""
    full = np.zeros((IMAGE_SIZE, IMAGE_SIZE))
    left, top, right, bottom = _box(thing)
    full[top:bottom, left:right] = _coverage(thing)
    return full


def _paint(thing: SceneObject) -> np.ndarray:
    """Colour of every pixel in the object's box before masking, (height, width, 3)."""
    left, top, right, bottom = _box(thing)
    color = np.array(COLORS[thing.color], dtype=float)
    if thing.texture == "solid":
        return np.broadcast_to(color, (bottom - top, right - left, 3))
    width = max(4, round(thing.r / 3))
    column = (np.arange(right - left) // width)[None, :]
    row = (np.arange(bottom - top) // width)[:, None] if thing.texture == "checkered" else 0
    white = ((column + row) % 2 == 1) & np.ones((bottom - top, 1), dtype=bool)
    return np.where(white[..., None], WHITE, color)


def render(scene: Scene) -> np.ndarray:
    """Draw a scene.

    What `scene` leaves unplaced is placed first, by `layout` with seed 0.

    Returns:
        uint8 array (64, 64, 3), RGB.
    """
    if any(o.r is None or o.texture is None for o in scene.objects) or scene.background is None:
        scene = layout(scene, random.Random(0))
    image = np.full((IMAGE_SIZE, IMAGE_SIZE, 3), float(scene.background))
    for thing in sorted(scene.objects, key=lambda o: o.depth or 0):
        left, top, right, bottom = _box(thing)
        cover = _coverage(thing)[..., None]
        patch = image[top:bottom, left:right]
        image[top:bottom, left:right] = patch + cover * (_paint(thing) - patch)
    return np.rint(image).astype(np.uint8)
