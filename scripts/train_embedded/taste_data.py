"""Pictures that differ in taste, to train `scenes-taste` on.

Seen scenes with radii and places beyond what the world draws, each beside the same scene with one
thing changed: the radii, the places, the colours' fullness, or the ground. Degraded, as they are
or after `embedded/scenes` has redrawn them. Labels are those of detector_data.py; what colours and
ground look like is measured on the picture, where the drawn scene says that they are.
"""

import math
import random
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from detector_data import FIELDS as COLUMNS
from detector_data import MOST, Labelled, as_bytes, as_float, blotched
from imperfect import degrade, redraw
from near_misses import random_scene
from odd_objects import PALETTE, scene_labels
from torch import Tensor

import align
from align.models.precision import autocast
from align.scenes import describe
from align.scenes.grammar import COLORS, RELATIONS_3D, Scene, SceneObject
from align.scenes.render import render

CENTER = 6.0  # px from a centre within which a place says that an object is there
FAR = 9.0  # px from which it says that none is
MOST_GAP = 8.0  # px, either way, that is told apart
PALETTE_RGB = torch.tensor(PALETTE, dtype=torch.float32) / 255


# --- scenes --------------------------------------------------------------------------------------


def loose(scene: Scene, rng: random.Random) -> Scene | None:
    """`scene` placed with any radii that fit, 5 to 22 px; None where it did not fit."""
    most = {1: 22.0, 2: 19.0, 3: 15.5, 4: 14.5}[len(scene.objects)]
    least, overlap = rng.uniform(5, most - 2), any(r.kind in RELATIONS_3D for r in scene.relations)
    placed: list[SceneObject] = []
    for index, thing in enumerate(scene.objects):
        texture = thing.texture or rng.choice(("solid",) * 4 + ("striped", "checkered"))
        r = max(rng.uniform(least, most), 9.0 if texture != "solid" else 0.0)
        for _ in range(40):
            x, y = rng.uniform(r, 64 - r), rng.uniform(r, 64 - r)
            gaps = [math.hypot(x - o.x, y - o.y) - r - o.r for o in placed]
            near = overlap and index == 1
            if all(-0.5 * (r + placed[0].r) < g < -4 if near else g >= -1 for g in gaps):
                break
        else:
            return None
        placed.append(replace(thing, texture=texture, x=x, y=y, r=r, depth=index, size=None))
    return replace(scene, objects=tuple(placed), background=rng.randint(212, 252))


def draw_loose(rng: random.Random) -> Scene:
    while True:
        placed = loose(random_scene(rng), rng)
        if placed is not None:
            return placed


def resized(scene: Scene, rng: random.Random) -> Scene:
    """The same about the same centres, all radii times one factor; no wider than the border."""
    factor, objects = math.exp(rng.choice((-1, 1)) * rng.uniform(0.08, 0.5)), []
    for o in scene.objects:
        room = min(o.x, o.y, 64 - o.x, 64 - o.y)
        objects.append(replace(o, r=max(4.5, min(o.r * factor, room))))
    return replace(scene, objects=tuple(objects))


def moved(scene: Scene, rng: random.Random) -> Scene:
    """The same objects elsewhere."""
    for _ in range(10):
        again = loose(scene, rng)
        if again is None:
            continue
        objects = [
            replace(o, x=min(max(n.x, o.r), 64 - o.r), y=min(max(n.y, o.r), 64 - o.r))
            for o, n in zip(scene.objects, again.objects, strict=True)
        ]
        return replace(scene, objects=tuple(objects))
    return scene


def faded(image: np.ndarray, scene: Scene, rng: random.Random) -> np.ndarray:
    """The picture of a scene, with its objects' colours washed out, greyed or tinted."""
    result = image.astype(float)
    for i, o in enumerate(scene.objects):
        if rng.random() < 0.2:
            continue
        color = np.array(COLORS[o.color], float)
        other = "cyan" if o.color == "black" else "black"
        shift = np.array(COLORS[other], float) - color
        objects = [replace(p, color=other) if j == i else p for j, p in enumerate(scene.objects)]
        # pictures are affine in a colour: how much of it is in each pixel
        change = render(replace(scene, objects=tuple(objects))).astype(float) - image
        share = np.clip((change @ shift) / (shift @ shift), 0, 1)[..., None]
        goal = rng.choice(
            (np.full(3, 235.0), np.full(3, color.mean()), np.array([rng.uniform(0, 255)] * 3),
             np.array([rng.uniform(0, 255) for _ in range(3)]))
        )  # fmt: skip
        result += share * rng.uniform(0.05, 0.5) * (goal - color)
    return np.rint(result.clip(0, 255)).astype(np.uint8)


def stained(images: Tensor, grounds: Tensor, rng: random.Random) -> Tensor:
    """Pictures whose ground, where `grounds` [n, 64, 64], is another grey, tinted or mottled."""
    seed, n = rng.getrandbits(40), len(images)
    generator = torch.Generator().manual_seed(seed)
    shift = 0.06 * torch.randn(n, 1, 1, 1, generator=generator)
    smooth = torch.randn(n, 3, 6, 6, generator=generator)
    smooth = F.interpolate(smooth, (64, 64), mode="bicubic", align_corners=False)
    fine = torch.randn(n, 3, 64, 64, generator=generator)
    coarse, grain = torch.rand(2, n, 1, 1, 1, generator=generator).square()
    change = shift + 0.12 * coarse * smooth + 0.06 * grain * fine
    return (images + grounds[:, None] * change).clamp(0, 1)


def drawn_pairs(rng: random.Random, count: int) -> tuple[Tensor, Tensor, Tensor, list[Scene]]:
    """`count` pairs one after the other: images, labels, the renders in pure colours, scenes."""
    images, drawn, scenes = [], [], []
    stain = torch.zeros(2 * count, dtype=torch.bool)
    for i in range(count):
        scene = draw_loose(rng)
        kind = rng.choice(("size", "size", "place", "color", "ground"))
        change = {"size": resized, "place": moved}.get(kind)
        other = change(scene, rng) if change else scene
        for one in (scene, other):
            drawn.append(render(one))
            images.append(drawn[-1])
        scenes += [scene, other]
        if kind == "color":
            images[-1] = faded(drawn[-1], other, rng)
        stain[2 * i + 1] = kind == "ground"
    labels = torch.full((2 * count, MOST, COLUMNS), torch.nan)
    for rows, scene in zip(labels, scenes, strict=True):
        found = scene_labels(scene)
        rows[: len(found)] = torch.tensor(found)
    pure, x = as_float(np.stack(drawn)), as_float(np.stack(images))
    stain_x = stained(x[stain], ground_mask(pure[stain]).float(), rng)
    x[stain] = stain_x
    return x, labels, pure, scenes


def fresh(rng: random.Random, count: int) -> Labelled:
    """`count` pairs, a third of the pictures left clean, the others degraded."""
    x, labels, drawn, _ = drawn_pairs(rng, count)
    noisy = degrade(blotched(x, rng), torch.Generator().manual_seed(rng.getrandbits(40)))
    clean = torch.tensor([rng.random() < 0.35 for _ in x])
    return Labelled(torch.where(clean[:, None, None, None], x, noisy), labels, drawn)


@torch.no_grad()
def redrawn(count: int, seed: int, batch: int = 64) -> dict[str, Tensor]:
    """`count` of them as bytes after the autoencoder (a third), or redrawn by the last one to four
    of twelve steps of `embedded/scenes`; in the form of detector_data.py's pools."""
    pipe, rng = align.load_pipeline("embedded/scenes"), random.Random(f"taste-redrawn-{seed}")
    made: dict[str, list[Tensor]] = {"images": [], "labels": [], "drawn": []}
    while batch * len(made["images"]) < count:
        x, labels, drawn, scenes = drawn_pairs(rng, batch // 2)
        if rng.random() < 0.3:
            x = degrade(x, torch.Generator().manual_seed(rng.getrandbits(40)))
        prompts = [describe(replace(s, background=None)) for s in scenes]
        with autocast("cpu"):
            x = redraw(pipe, x, prompts, rng.choice((0, 0, 1, 2, 3, 4)), rng.getrandbits(40))
        for key, value in zip(made, (as_bytes(x), labels, as_bytes(drawn)), strict=True):
            made[key].append(value)
    return {key: torch.cat(values) for key, values in made.items()}


# --- truth ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Truth:
    """What the network is to say: of objects [b, m], NaN where unknown or unused, and pictures."""

    gap: Tensor
    border: Tensor
    off: Tensor
    level: Tensor
    uneven: Tensor


def ground_mask(drawn: Tensor) -> Tensor:
    """Bool [b, 64, 64]: pixels of a render (NaN: of none) that nothing is within 2 px of."""
    frame = torch.cat([drawn[..., 0, :], drawn[..., -1, :], drawn[..., 0], drawn[..., -1]], -1)
    level = frame.median(-1).values[..., None, None]
    ground = ((drawn - level).abs().amax(1) < 1.5 / 255).float()
    return -F.max_pool2d(-ground[:, None], 5, 1, 2)[:, 0] > 0.5


def distances(data: Labelled, known: Tensor) -> Tensor:
    """Mean distance of their pixels, a pixel from any edge, to their colours of the objects `known`
    [b, m], one after the other; NaN where fewer than 4 pixels are seen."""
    picture = known.nonzero()[:, 0]
    color, x, y, r = (data.labels[known][:, i, None, None] for i in (0, 3, 4, 5))
    own = PALETTE_RGB[color.flatten().long()][..., None, None]  # [n, 3, 1, 1]
    axis = torch.arange(64) + 0.5
    inside = torch.hypot(axis - x, axis[:, None] - y) < r + 1
    pure = ((data.drawn[picture] - own).abs().amax(1) < 1.5 / 255) & inside
    core = -F.max_pool2d(-pure[:, None].float(), 3, 1, 1)[:, 0]
    pixels = core.sum((1, 2))
    distance = ((data.images[picture] - own).norm(dim=1) / 3**0.5 * core).sum((1, 2)) / pixels
    return torch.where(pixels >= 4, distance, torch.nan)


def truth(data: Labelled) -> Truth:
    """The taste of pictures, exactly, by what was drawn."""
    color, x, y, r = (data.labels[..., i] for i in (0, 3, 4, 5))
    border = torch.stack([x, y, 64 - x, 64 - y]).amin(0) - r
    apart = torch.hypot(x[:, :, None] - x[:, None], y[:, :, None] - y[:, None])
    gaps = (apart - r[:, :, None] - r[:, None]).nan_to_num(torch.inf)
    gaps.diagonal(dim1=1, dim2=2).fill_(torch.inf)
    gap = torch.where(r.isfinite(), gaps.amin(2), torch.nan)

    off = torch.full_like(r, torch.nan)
    known = (color >= 0) & (color < len(COLORS))
    off[known] = distances(data, known)

    ground = ground_mask(data.drawn).float()
    area = ground.sum((1, 2))
    mean = (data.images * ground[:, None]).sum((2, 3)) / area[:, None]
    square = ((data.images - mean[..., None, None]) ** 2 * ground[:, None]).sum((2, 3))
    uneven = 255 * (square.mean(1) / area).sqrt()
    clipped = (v.clamp(-MOST_GAP, MOST_GAP) for v in (gap, border))
    few = area < 40  # 0 where no render is known
    level = torch.where(few, torch.nan, 255 * mean.mean(1))
    return Truth(*clipped, off, level, torch.where(few, torch.nan, uneven))
