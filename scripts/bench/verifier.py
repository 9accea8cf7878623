"""Measures the scenes verifier: how often true pictures pass, and how often wrong ones do.

Prints Markdown tables. True pictures come from the renderer, clean, as JPEG of quality 85, and with
uniform noise of 8 grey levels. Wrong pictures differ from their prompt in one stated fact.

    python scripts/bench/verifier.py --pictures 500
"""

import argparse
import io
import random
import time
from dataclasses import replace

import numpy as np
import torch
from PIL import Image

from align.scenes import CATEGORIES, ReadObject, describe, layout, parse, read, render, verify
from align.scenes.dataset import random_scene, sample_scene
from align.scenes.grammar import COLORS, RELATIONS_2D, SHAPES, SIZES, TEXTURES, Scene
from align.scenes.render import silhouette
from align.scenes.verifier import check

MIRRORED = {"left of": "right of", "above": "below", "in front of": "behind"}
MIRRORED |= {b: a for a, b in MIRRORED.items()}
DAMAGES = ("clean", "JPEG 85", "noise 8")
CHANGES = ("color", "shape", "texture", "size", "relation", "count", "extra", "swap")


def damage(image: np.ndarray, how: str, seed: int) -> np.ndarray:
    """A uint8 picture (64, 64, 3) after one of `DAMAGES`."""
    if how == "JPEG 85":
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "JPEG", quality=85)
        return np.asarray(Image.open(buffer))
    if how == "noise 8":
        noise = np.random.default_rng(seed).integers(-8, 9, image.shape)
        return np.clip(image.astype(int) + noise, 0, 255).astype(np.uint8)
    return image


def judge(prompts: list[str], images: list[np.ndarray]) -> torch.Tensor:
    """Exact scores (n,) of uint8 pictures."""
    pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 255
    return verify(prompts, pixels)[0]


def wrong_scene(scene: Scene, change: str, rng: random.Random) -> Scene | None:
    """What a picture with one wrong fact shows (stated only), or None where nothing can change."""
    objects, relations = list(scene.objects), list(scene.relations)
    i = rng.randrange(len(objects))
    one = objects[i]
    alike = scene.counted or len({(o.color, o.shape) for o in objects}) < len(objects)
    if change in ("color", "shape"):
        choices = [
            v for v in (COLORS if change == "color" else SHAPES) if v != getattr(one, change)
        ]
        objects[i] = replace(one, **{change: rng.choice(choices)})
    elif change == "texture" and one.texture:
        plain = one.size == "small"  # nothing small is textured
        others = [t for t in TEXTURES if t != one.texture and not plain]
        objects[i] = replace(one, texture=rng.choice(others)) if others else one
    elif change == "size" and one.size and one.texture in (None, "solid"):
        objects[i] = replace(one, size=SIZES[1 - SIZES.index(one.size)])
    elif change == "relation" and relations:
        k = rng.randrange(len(relations))
        relations[k] = replace(relations[k], kind=MIRRORED[relations[k].kind])
    elif change == "count" and len(objects) > 1:
        objects, relations = objects[:i] + objects[i + 1 :], []
    elif (
        change == "extra"
        and len(objects) < 4
        and not any(r.kind not in RELATIONS_2D for r in relations)
    ):
        same = {"color": one.color, "shape": one.shape} if alike else {}
        spare = random_scene("single", rng).objects[0]
        objects.append(replace(spare, size=None, texture=None, **same))
    elif change == "swap" and not alike and len(objects) > 1:
        j = rng.choice([k for k in range(len(objects)) if k != i])
        field = rng.choice(("color", "shape", "texture", "size"))
        a, b = getattr(objects[i], field), getattr(objects[j], field)
        if a is None or b is None:
            return None
        objects[i], objects[j] = replace(one, **{field: b}), replace(objects[j], **{field: a})
    changed = Scene(tuple(objects), tuple(relations))
    same = sorted(map(repr, changed.objects)) == sorted(map(repr, scene.objects))
    return None if same and changed.relations == scene.relations else changed


def truly_read(scene: Scene, seen: list[ReadObject]) -> bool:
    """Whether every object of a placed scene is read right: its looks, its place, its depth."""
    depths = []
    if len(seen) != len(scene.objects):
        return False
    for o in scene.objects:
        one = min(seen, key=lambda s: abs(s.x - o.x) + abs(s.y - o.y))
        if max(abs(one.x - o.x), abs(one.y - o.y), abs(one.r - o.r)) > 1:
            return False
        if (one.color, one.shape, one.texture) != (o.color, o.shape, o.texture):
            return False
        depths.append(one.depth)
    pairs = [(a, b) for a in range(len(depths)) for b in range(a)]
    return all(
        (depths[a] > depths[b]) == (scene.objects[a].depth > scene.objects[b].depth)
        for a, b in pairs
        if (silhouette(scene.objects[a]) * silhouette(scene.objects[b])).sum() >= 15
    )


def true_rates(category: str, pictures: int, how: str) -> tuple[float, float]:
    """Shares of true pictures that pass, and that are read right in full."""
    passed = full = 0
    for seed in range(pictures):
        prompt, scene = sample_scene(category, seed, heldout=seed % 4 == 0)
        seen = read(damage(render(scene), how, seed))
        passed += all(check(parse(prompt), seen)) and len(seen) == len(scene.objects)
        full += truly_read(scene, seen)
    return passed / pictures, full / pictures


def wrong_pictures(category: str, change: str, pictures: int) -> tuple[list[str], list[np.ndarray]]:
    """Prompts, and pictures that break one fact of them; fewer where `change` seldom applies."""
    rng = random.Random(f"{category} {change}")
    prompts, images = [], []
    for _ in range(40 * pictures):
        scene = random_scene(category, rng)
        other = wrong_scene(scene, change, rng)
        try:
            placed = layout(other, rng, attempts=100) if other else None
        except ValueError:
            continue
        if placed is not None:
            prompts.append(describe(scene, rng))
            images.append(render(placed))
        if len(prompts) == pictures:
            break
    return prompts, images


def false_rate(category: str, change: str, pictures: int, how: str) -> tuple[int, int]:
    """How many pictures with one wrong fact pass, of how many."""
    prompts, images = wrong_pictures(category, change, pictures)
    if not prompts:
        return 0, 0
    images = [damage(image, how, seed) for seed, image in enumerate(images)]
    return int(judge(prompts, images).sum()), len(prompts)


def shape_rates(pictures: int, how: str) -> dict[tuple[str, str], float]:
    """Share of single-object pictures that pass, by texture and shape."""
    rates = {}
    for texture in TEXTURES:
        for shape in SHAPES:
            rng, prompts, images = random.Random(f"{texture} {shape}"), [], []
            for seed in range(pictures):
                color = rng.choice(list(COLORS))
                thing = replace(random_scene("single", rng).objects[0], color=color, shape=shape)
                scene = Scene((replace(thing, texture=texture, size=None),))
                prompts.append(describe(scene))
                images.append(damage(render(layout(scene, rng)), how, seed))
            rates[texture, shape] = float(judge(prompts, images).mean())
    return rates


def _row(*cells: str) -> None:
    print("| " + " | ".join(cells) + " |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", type=int, default=300, help="true pictures a category")
    parser.add_argument("--wrong", type=int, default=60, help="wrong pictures a category and kind")
    arguments = parser.parse_args()
    torch.set_num_threads(1)

    print("True pictures: exact score 1 (in brackets: every object read right in full), %\n")
    _row("category", *DAMAGES)
    _row("---", *["---"] * len(DAMAGES))
    began = time.process_time()
    for category in CATEGORIES:
        rates = [true_rates(category, arguments.pictures, how) for how in DAMAGES]
        _row(category, *(f"{100 * a:.1f} ({100 * b:.1f})" for a, b in rates))
    count = len(CATEGORIES) * len(DAMAGES) * arguments.pictures
    pace = 1000 * (time.process_time() - began) / count

    print("\nOne object, texture and shape stated: exact score 1, %\n")
    rates = {how: shape_rates(arguments.pictures // 4, how) for how in DAMAGES}
    _row("texture", "damage", *SHAPES)
    _row("---", "---", *["---"] * len(SHAPES))
    for texture in TEXTURES:
        for how in DAMAGES:
            _row(texture, how, *(f"{100 * rates[how][texture, s]:.1f}" for s in SHAPES))

    print("\nPictures with one wrong fact: passed / judged (clean, JPEG and noise together)\n")
    _row("category", *CHANGES)
    _row("---", *["---"] * len(CHANGES))
    for category in CATEGORIES:
        cells = []
        for change in CHANGES:
            counts = [false_rate(category, change, arguments.wrong, how) for how in DAMAGES]
            passed, judged = (sum(c) for c in zip(*counts, strict=True))
            cells.append(f"{passed} / {judged}" if judged else "")
        _row(category, *cells)
    print(f"\n{pace:.1f} ms of CPU time a picture")


if __name__ == "__main__":
    main()
