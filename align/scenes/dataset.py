"""Drawing scenes at random: training streams, single samples, built-in prompt sets."""

import random
from collections.abc import Iterator
from functools import lru_cache

import numpy as np

from align.scenes.grammar import (
    CATEGORIES,
    COLORS,
    RELATIONS_2D,
    RELATIONS_3D,
    SHAPES,
    SIZES,
    TEXTURES,
    Relation,
    Scene,
    SceneObject,
    describe,
    heldout_combinations,
    heldout_half,
    parse,
    scene_category,
)
from align.scenes.render import layout, render

PROMPTS_PER_CATEGORY = 60
PROMPT_SETS = (
    "scenes",
    *(f"scenes-{category}" for category in CATEGORIES),
    "scenes-heldout-a",
    "scenes-heldout-b",
)


def _two_different(rng: random.Random) -> list[SceneObject]:
    colors, shapes = rng.sample(list(COLORS), 3), rng.sample(SHAPES, 3)
    return [SceneObject(color, shape) for color, shape in zip(colors, shapes, strict=True)]


def _size_and_texture(rng: random.Random, allow_large: bool = True) -> dict:
    """Sometimes a size, sometimes a texture; never a small textured object."""
    size = rng.choice((None, None, *SIZES)) if allow_large else rng.choice((None, None, "small"))
    texture = rng.choice((None, None, *TEXTURES))
    if size == "small" and texture in ("striped", "checkered"):
        size = None
    return {"size": size, "texture": texture}


def _complex_scene(rng: random.Random) -> Scene:
    count = rng.choice((2, 3))
    things = _two_different(rng)[:count]
    styles: list[dict] = [{} for _ in things]
    styles[rng.randrange(count)]["texture"] = rng.choice(TEXTURES)
    sized = rng.randrange(count)
    textured = styles[sized].get("texture", "solid") != "solid"
    styles[sized]["size"] = "large" if textured else rng.choice(SIZES)
    objects = [
        SceneObject(o.color, o.shape, s.get("texture"), s.get("size"))
        for o, s in zip(things, styles, strict=True)
    ]
    links = rng.choice(((0,), (1,), (0, 1))) if count == 3 else (0,)
    relations = [Relation(i, rng.choice(RELATIONS_2D), i + 1) for i in links]
    return Scene(tuple(objects), tuple(relations))


def random_scene(category: str, rng: random.Random) -> Scene:
    """What a random prompt of `category` states, seen or held out; nothing is placed yet."""
    if category not in CATEGORIES:
        raise ValueError(f"unknown category {category!r}: one of {', '.join(CATEGORIES)}")
    if category == "single":
        return Scene(
            (SceneObject(rng.choice(list(COLORS)), rng.choice(SHAPES), **_size_and_texture(rng)),)
        )
    if category == "numeracy":
        count = rng.randint(1, 4)
        style = _size_and_texture(rng, allow_large=count == 1) if rng.random() < 0.3 else {}
        if count > 2 and style.get("texture") in ("striped", "checkered"):
            style["size"] = None
        thing = SceneObject(rng.choice(list(COLORS)), rng.choice(SHAPES), **style)
        return Scene((thing,) * count, counted=True)
    if category == "complex":
        return _complex_scene(rng)
    a, b, _ = _two_different(rng)
    if category == "color":
        # colours must differ, shapes may or may not
        b = SceneObject(b.color, a.shape) if rng.random() < 0.3 else b
        return Scene((a, b))
    if category == "shape":
        return Scene((a, SceneObject(a.color, b.shape)))
    if category == "texture":
        textures = rng.sample(TEXTURES, 2)
        objects = [SceneObject(o.color, o.shape, t) for o, t in zip((a, b), textures, strict=True)]
        return Scene(tuple(objects))
    if category == "size":
        sizes = rng.sample(SIZES, 2)
        objects = [
            SceneObject(o.color, o.shape, None, s) for o, s in zip((a, b), sizes, strict=True)
        ]
        return Scene(tuple(objects))
    kinds = RELATIONS_2D if category == "2d_spatial" else RELATIONS_3D
    return Scene((a, b), (Relation(0, rng.choice(kinds), 1),))


def random_stated_scene(category: str, rng: random.Random, heldout: bool = False) -> Scene:
    """A random scene of `category` from the seen (or only the held-out) combinations."""
    while True:
        scene = random_scene(category, rng)
        if bool(heldout_combinations(scene)) == heldout:
            return scene


def sample_scene(category: str, seed: int, heldout: bool = False) -> tuple[str, Scene]:
    """A random prompt of `category` and a placed scene that it describes; the same for one seed."""
    rng = random.Random(f"scenes-{category}-{seed}-{heldout}")
    scene = random_stated_scene(category, rng, heldout)
    return describe(scene, rng), layout(scene, rng)


def sample(category: str, seed: int, heldout: bool = False) -> tuple[str, np.ndarray]:
    """A random prompt of `category` and a true picture of it, uint8 (64, 64, 3).

    Args:
        category: one of `CATEGORIES`.
        seed: the same seed gives the same prompt and picture.
        heldout: True draws from the held-out combinations only, False from the seen ones only.
    """
    prompt, scene = sample_scene(category, seed, heldout)
    return prompt, render(scene)


def stream(seed: int, categories: tuple[str, ...] = CATEGORIES) -> Iterator[tuple[str, Scene]]:
    """Endless seen (prompt, placed scene) pairs, categories in turn; for training."""
    rng = random.Random(f"scenes-stream-{seed}")
    while True:
        for category in categories:
            scene = random_stated_scene(category, rng)
            yield describe(scene, rng), layout(scene, rng)


@lru_cache
def prompt_set(name: str, per_category: int = PROMPTS_PER_CATEGORY) -> tuple[str, ...]:
    """The prompts of a built-in scenes set, fixed, without repeats, category after category.

    `scenes` and `scenes-CATEGORY` hold seen combinations, `scenes-heldout-a` and `-b` the two
    halves of the held-out ones; 60 prompts a category where it has that many, or the first
    `per_category` of them.
    """
    if name not in PROMPT_SETS:
        raise ValueError(f"unknown scenes prompt set {name!r}: one of {', '.join(PROMPT_SETS)}")
    half = name.removeprefix("scenes-heldout-") if name.startswith("scenes-heldout-") else None
    only = name.removeprefix("scenes-")
    prompts: list[str] = []
    for category in (only,) if only in CATEGORIES else CATEGORIES:
        rng = random.Random(f"scenes-prompts-{category}-{half}")
        scenes, chosen = set(), []
        for _ in range(20_000):
            scene = random_stated_scene(category, rng, heldout=half is not None)
            text = describe(scene, rng)
            if heldout_half(scene) != half or scene in scenes:
                continue
            if half and category == "numeracy" and len(scene.objects) == 1:
                continue
            scenes.add(scene)
            chosen.append(text)
            if len(chosen) == PROMPTS_PER_CATEGORY:
                break
        prompts += chosen[:per_category]
    return tuple(prompts)


def prompt_categories(prompts: tuple[str, ...] | list[str]) -> list[str]:
    """The category of each prompt."""
    return [scene_category(parse(prompt)) for prompt in prompts]
