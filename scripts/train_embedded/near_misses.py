"""Scenes to train rewards on: seen ones, and near misses with one fact changed, also seen."""

import random
from dataclasses import replace

from align.scenes.dataset import random_stated_scene
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
    heldout_combinations,
    scene_category,
)
from align.scenes.render import layout

# two objects and their binding are the hard part
WEIGHTS = {"single": 1, "color": 2, "shape": 1, "texture": 2, "size": 2, "2d_spatial": 3,
           "3d_spatial": 2, "numeracy": 2, "complex": 2}  # fmt: skip


def _other(rng: random.Random, values, *taken):
    return rng.choice([v for v in values if v not in taken])


def _change_object(scene: Scene, rng: random.Random, **change) -> Scene:
    """Change one object, or all of a counted kind at once."""
    index = rng.randrange(len(scene.objects))
    alike = scene_category(scene) == "numeracy"
    objects = []
    for i, o in enumerate(scene.objects):
        if i == index or alike:
            o = replace(o, **{k: f(o) for k, f in change.items()})
        objects.append(o)
    return replace(scene, objects=tuple(objects))


def _swap(scene: Scene, rng: random.Random) -> Scene:
    """Exchange an attribute of two objects."""
    i, j = rng.sample(range(len(scene.objects)), 2)
    objects = list(scene.objects)
    fields = [f for f in ("color", "color", "texture", "size")
              if getattr(objects[i], f) != getattr(objects[j], f)]  # fmt: skip
    field = rng.choice(fields or ["shape"])
    a, b = getattr(objects[i], field), getattr(objects[j], field)
    objects[i], objects[j] = replace(objects[i], **{field: b}), replace(objects[j], **{field: a})
    return replace(scene, objects=tuple(objects))


def _change_relation(scene: Scene, rng: random.Random) -> Scene:
    index = rng.randrange(len(scene.relations))
    old = scene.relations[index]
    family = RELATIONS_2D if old.kind in RELATIONS_2D else RELATIONS_3D
    mirrored = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
    kind = mirrored.get(old.kind, _other(rng, RELATIONS_3D, old.kind))
    if rng.random() < 0.3 and family is RELATIONS_2D:
        kind = _other(rng, family, old.kind)
    relations = list(scene.relations)
    relations[index] = Relation(old.first, kind, old.second)
    return replace(scene, relations=tuple(relations))


def _change_count(scene: Scene, rng: random.Random) -> Scene:
    n = len(scene.objects)
    count = rng.choice([c for c in (n - 1, n + 1) if 1 <= c <= 4])
    return Scene(scene.objects[:1] * count, counted=True)


def _drop(scene: Scene, rng: random.Random) -> Scene:
    return Scene(scene.objects[:1] if rng.random() < 0.5 else scene.objects[-1:])


def vary(scene: Scene, rng: random.Random) -> Scene:
    """A stated scene that differs from `scene` in one fact and is no held-out combination."""
    kinds = ["color", "color", "shape", "shape"]
    if scene_category(scene) == "numeracy":
        kinds += ["count"] * 6
    elif len(scene.objects) > 1:
        kinds += ["swap"] * 4 + ["drop"]
    kinds += ["relation"] * 6 if scene.relations else []
    kinds += ["texture"] * 2 if any(o.texture for o in scene.objects) else []
    kinds += ["size"] * 2 if any(o.size for o in scene.objects) else []
    while True:
        changed = _vary_by(rng.choice(kinds), scene, rng)
        textured_small = any(
            o.size == "small" and o.texture not in (None, "solid") for o in changed.objects
        )
        if changed != scene and not textured_small and not heldout_combinations(changed):
            return changed


def _vary_by(kind: str, scene: Scene, rng: random.Random) -> Scene:
    if kind == "color":
        color = rng.choice(list(COLORS))
        return _change_object(scene, rng, color=lambda o: color)
    if kind == "shape":
        shape = rng.choice(SHAPES)
        return _change_object(scene, rng, shape=lambda o: shape)
    if kind == "texture":
        texture = rng.choice(TEXTURES)
        return _change_object(scene, rng, texture=lambda o: o.texture and texture)
    if kind == "size":
        size = rng.choice(SIZES)
        return _change_object(scene, rng, size=lambda o: o.size and size)
    changes = {"count": _change_count, "swap": _swap, "drop": _drop, "relation": _change_relation}
    return changes[kind](scene, rng)


def with_intruder(scene: Scene, rng: random.Random) -> Scene:
    """`scene` with one object more that nobody named, no held-out combination either: half of the
    time a double of one that is there, generators' commonest fault. No prompt states it."""
    while True:
        like = rng.choice(scene.objects)
        if rng.random() < 0.5:
            more = SceneObject(like.color, like.shape)
        else:
            more = SceneObject(rng.choice(list(COLORS)), rng.choice(SHAPES))
        intruded = replace(scene, objects=(*scene.objects, more))
        if not heldout_combinations(intruded):
            return intruded


def try_layout(scene: Scene, rng: random.Random) -> Scene | None:
    """`layout` with little patience: None where the scene hardly fits (two large ones, say)."""
    try:
        return layout(scene, rng, attempts=60)
    except ValueError:
        return None


def random_scene(rng: random.Random) -> Scene:
    """A stated seen scene, hard categories more often."""
    category = rng.choices(CATEGORIES, [WEIGHTS[c] for c in CATEGORIES])[0]
    return random_stated_scene(category, rng)


def draw_groups(rng: random.Random, count: int, group: int = 4) -> tuple[list[Scene], list[Scene]]:
    """`count` (stated, placed) scenes, in groups of a seen scene and its near misses."""
    said, drawn = [], []
    while len(said) < count:
        scene = random_scene(rng)
        for stated in (scene, *(vary(scene, rng) for _ in range(group - 1))):
            placed = try_layout(stated, rng)
            if placed is not None and len(said) < count:
                said.append(stated)
                drawn.append(placed)
    return said, drawn


def draw_intruded_groups(rng: random.Random, count: int) -> tuple[list[Scene | None], list[Scene]]:
    """As `draw_groups`, each group of four followed by a picture of its first scene with an object
    too many, for which nothing is said (None)."""
    said, drawn = [], []
    while len(said) < count:
        scene = random_scene(rng)
        stated = [scene, *(vary(scene, rng) for _ in range(3))]
        placed = [try_layout(s, rng) for s in stated]
        if len(scene.objects) < 4:
            stated, placed = [*stated, None], [*placed, try_layout(with_intruder(scene, rng), rng)]
        if None not in placed:
            said, drawn = said + stated, drawn + placed
    return said[:count], drawn[:count]
