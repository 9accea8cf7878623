"""Pictures with the places of their objects, to train `scenes-detector` on.

    python scripts/train_embedded/detector_data.py --minutes 14    # pools that generators redrew

Renders of seen scenes with one fact changed, an object too many or an odd one; degraded; and pools
of such renders redrawn by `embedded/scenes`, `embedded/scenes-turbo` and NAR's tokenizer. Every
label is what was drawn.
"""

import argparse
import random
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from imperfect import degrade, jpeg, redraw
from near_misses import random_scene, try_layout, vary, with_intruder
from odd_objects import add_odd, scene_labels
from torch import Tensor

import align
from align.models.precision import autocast
from align.nar.tokenizer import ImageTokenizer
from align.scenes import describe
from align.scenes.grammar import Scene
from align.scenes.render import render

ROOT = Path(__file__).parents[2]
EMBEDDED = ROOT / "align/embedded"
POOLS = ROOT / "work/detector/pools"
MOST = 6  # rows a picture
FIELDS = 7
ODD = 0.25  # share of pictures with an odd object


@dataclass(frozen=True)
class Labelled:
    """`images` float [n, 3, 64, 64] in [0, 1]; `labels` float [n, 6, 7] (see odd_objects.py),
    rows that are not used NaN; `drawn`, the renders before anything was done to them, NaN where a
    generator may have moved or lost an object."""

    images: Tensor
    labels: Tensor
    drawn: Tensor

    def part(self, index) -> "Labelled":
        return Labelled(self.images[index], self.labels[index], self.drawn[index])

    @staticmethod
    def joined(*parts: "Labelled") -> "Labelled":
        fields = zip(*(vars(part).values() for part in parts), strict=True)
        return Labelled(*map(torch.cat, fields))


def draw_scene(rng: random.Random) -> Scene:
    """A placed seen scene, one with a fact changed, or one with an object too many."""
    while True:
        scene = random_scene(rng)
        chance = rng.random()
        if chance < 0.4:
            scene = vary(scene, rng)
        elif chance < 0.6 and len(scene.objects) < 4:
            scene = with_intruder(scene, rng)
        placed = try_layout(scene, rng)
        if placed is not None:
            return placed


def draw_clean(
    rng: random.Random, count: int, odd: float = ODD
) -> tuple[np.ndarray, Tensor, list[str]]:
    """Renders uint8 (count, 64, 64, 3), their labels, and prompts that say what they show but for
    odd objects, which a share `odd` of them has."""
    images, labels, prompts = [], torch.full((count, MOST, FIELDS), torch.nan), []
    for i in range(count):
        placed = draw_scene(rng)
        image, rows = render(placed), scene_labels(placed)
        if rng.random() < odd:
            add_odd(image, rows, rng)
        images.append(image)
        labels[i, : len(rows)] = torch.tensor(rows)
        prompts.append(describe(placed))
    return np.stack(images), labels, prompts


def as_float(images: np.ndarray) -> Tensor:
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255


def as_bytes(images: Tensor) -> Tensor:
    return (images.float().clamp(0, 1) * 255).round().to(torch.uint8)


def fresh(rng: random.Random, count: int) -> Labelled:
    """Renders, a fifth left clean, the others degraded, a fifth of all through JPEG."""
    images, labels, _ = draw_clean(rng, count)
    drawn = as_float(images)
    images = [jpeg(x, rng.randint(40, 90)) if rng.random() < 0.2 else x for x in images]
    x = blotched(as_float(np.stack(images)), rng)
    noisy = degrade(x, torch.Generator().manual_seed(rng.getrandbits(40)))
    clean = torch.tensor([rng.random() < 0.2 for _ in images])
    return Labelled(torch.where(clean[:, None, None, None], x, noisy), labels, drawn)


def blotched(images: Tensor, rng: random.Random) -> Tensor:
    """A quarter of the pictures with one to three soft patches of another colour somewhere."""
    images, axis = images.clone(), torch.arange(64) + 0.5
    for image in images:
        for _ in range(rng.choice((0, 0, 0, 0, 0, 0, 1, 3))):
            x, y, wide, high = (rng.uniform(*b) for b in ((4, 60), (4, 60), (1.2, 4), (1.2, 4)))
            share = torch.exp(-((axis - x) / wide).square() - ((axis[:, None] - y) / high).square())
            color = torch.tensor([rng.random() for _ in range(3)])[:, None, None]
            image += rng.uniform(0.3, 1.0) * share * (color - image)
    return images


def mirrored(data: Labelled, rng: random.Random) -> Labelled:
    """Half of the pictures left-right reversed (all shapes are symmetrical so), all moved by up to
    3 px, the border repeated."""
    both, labels = torch.cat([data.images, data.drawn], 1), data.labels.clone()
    for i in range(len(both)):
        if rng.random() < 0.5:
            both[i], labels[i, :, 3] = both[i].flip(-1), 64 - labels[i, :, 3]
        dx, dy = rng.randint(-3, 3), rng.randint(-3, 3)
        padded = torch.nn.functional.pad(both[i], (3, 3, 3, 3), mode="replicate")
        both[i] = padded[:, 3 - dy : 67 - dy, 3 - dx : 67 - dx]
        labels[i, :, 3] += dx
        labels[i, :, 4] += dy
    return Labelled(both[:, :3].contiguous(), labels, both[:, 3:])


KEYS = ("images", "labels", "drawn", "gentle")


class Pools:
    """Redrawn pictures on the disk, read into memory as bytes."""

    def __init__(self, folder: Path):
        parts = [torch.load(path, weights_only=True) for path in sorted(folder.glob("*.pt"))]
        if not parts:
            raise FileNotFoundError(f"no pools in {folder}: run detector_data.py first")
        self.data = {key: torch.cat([part[key] for part in parts]) for key in parts[0]}

    def draw(self, rng: random.Random, count: int) -> Labelled:
        index = torch.tensor([rng.randrange(len(self.data["images"])) for _ in range(count)])
        images, labels, drawn, gentle = (self.data[key][index] for key in KEYS)
        drawn = torch.where(gentle[:, None, None, None], drawn / 255, torch.nan)
        return Labelled(images / 255, labels, drawn)


@torch.no_grad()
def make_pools(folder: Path, seed: int, minutes: float, batch: int = 64) -> None:
    """Write pools of 64 x 16 pictures until `minutes` are over: of four pictures two are redrawn
    by `scenes` (0 to 6 of 12 steps), one by `scenes-turbo` (one step from timestep 249 or 499,
    or two), one goes through NAR's tokenizer; half of all are degraded first."""
    folder.mkdir(parents=True, exist_ok=True)
    scenes = align.load_pipeline("embedded/scenes")
    turbo = align.load_pipeline("embedded/scenes-turbo")
    tokenizer = ImageTokenizer.from_pretrained(EMBEDDED / "nar-scenes/image_tokenizer")
    tokenizer = tokenizer.float().eval()  # pyright: ignore[reportAttributeAccessIssue]
    end, number = time.monotonic() + 60 * minutes, len(list(folder.glob("*.pt")))
    while time.monotonic() < end:
        rng = random.Random(f"detector-pool-{seed}-{number}")
        made: dict[str, list[Tensor]] = {key: [] for key in KEYS}
        for turn in range(16):
            gentle = rng.random() < 0.5  # more would take away what no prompt names
            clean, rows, prompts = draw_clean(rng, batch, 2 * ODD if gentle else 0.0)
            x = drawn = as_float(clean)
            if rng.random() < 0.5:
                x = degrade(x, torch.Generator().manual_seed(rng.getrandbits(40)))
            noise = rng.getrandbits(40)
            with autocast("cpu"):
                if turn % 4 < 2:
                    x = redraw(
                        scenes, x, prompts, rng.choice((0, 2, 3) if gentle else (4, 5, 6)), noise
                    )
                elif turn % 4 == 2:
                    steps, of = (1, 4) if gentle else rng.choice(((1, 4), (2, 4), (1, 2)))
                    x = redraw(turbo, x, prompts, steps, noise, of)
                else:
                    x = tokenizer.decode(tokenizer.encode(x))
            known = torch.full((batch,), gentle or turn % 4 == 3)
            values = (as_bytes(x), rows, as_bytes(drawn), known)
            for key, value in zip(KEYS, values, strict=True):
                made[key].append(value)
        path = folder / f"{number:04d}.pt"
        torch.save({key: torch.cat(values) for key, values in made.items()}, f"{path}.tmp")
        Path(f"{path}.tmp").rename(path)
        number += 1
        print(f"{number} pools", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=14)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=POOLS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    make_pools(args.out, args.seed, args.minutes)


if __name__ == "__main__":
    main()
