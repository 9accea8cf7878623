"""Moving scenes: a prompt says what moves where, a clip of 8 frames of 32x32 pixels shows it.

One solid object on one grey background crosses a part of the picture at an even speed. Colours,
shapes and the combinations that are held out are those of `align.scenes.grammar`; lengths are in
pixels of the 64x64 renderer, whose frames are averaged down to half.
"""

import random
from dataclasses import dataclass

import numpy as np

from align.scenes.grammar import COLORS, SHAPES, Scene, SceneObject, describe, is_heldout, parse
from align.scenes.render import BACKGROUND, IMAGE_SIZE, MARGIN, render

FRAMES = 8
CLIP_SIZE = 32  # pixels a side
DIRECTIONS = {"right": (1, 0), "left": (-1, 0), "up": (0, -1), "down": (0, 1)}
RADIUS = (10.0, 16.0)  # px at 64x64
TRAVEL = (14.0, 26.0)  # px at 64x64 from the first frame to the last
# the main form first
PHRASES = {
    "right": ("moving right", "going right", "moving to the right"),
    "left": ("moving left", "going left", "moving to the left"),
    "up": ("moving up", "going up", "moving upwards"),
    "down": ("moving down", "going down", "moving downwards"),
}


@dataclass(frozen=True)
class MovingScene:
    """What a prompt states, and, once placed, where the object starts and how far it goes."""

    color: str
    shape: str
    direction: str
    x: float | None = None  # centre in the first frame
    y: float | None = None
    r: float | None = None
    travel: float | None = None
    background: int | None = None


def parse_motion(prompt: str) -> MovingScene:
    """Read a prompt such as "a red circle moving right".

    Raises:
        ValueError: it ends in no direction, or the rest is no single plain object.
    """
    if not isinstance(prompt, str):
        raise TypeError(f"a prompt of a clip is a str, got {type(prompt).__name__}")
    words = " ".join(prompt.split())
    for direction, phrases in PHRASES.items():
        for phrase in phrases:
            if words.endswith(f" {phrase}"):
                scene = parse(words.removesuffix(f" {phrase}"))
                first = scene.objects[0]
                if len(scene.objects) > 1 or scene.counted or first.texture or first.size:
                    raise ValueError(
                        f"{prompt!r} moves more than a plain object: a clip has one, such as "
                        "'a red circle', without size, texture or count"
                    )
                return MovingScene(first.color, first.shape, direction)
    known = ", ".join(phrases[0] for phrases in PHRASES.values())
    raise ValueError(f"{prompt!r} does not end in a direction: {known}")


def describe_motion(scene: MovingScene, rng: random.Random | None = None) -> str:
    """The main form of a prompt, or a random one from `rng`."""
    phrases = PHRASES[scene.direction]
    phrase = phrases[0] if rng is None else rng.choice((phrases[0], *phrases))
    return f"{describe(Scene((SceneObject(scene.color, scene.shape),)), rng)} {phrase}"


def is_heldout_motion(prompt: str) -> bool:
    """Whether the prompt's object is one that no embedded model has been trained on."""
    scene = parse_motion(prompt)
    return is_heldout(describe(Scene((SceneObject(scene.color, scene.shape),))))


def motion_prompts(heldout: bool = False) -> list[str]:
    """All prompts of seen (or held-out) objects in the main form, 4 directions each."""
    scenes = [MovingScene(c, s, d) for c in COLORS for s in SHAPES for d in DIRECTIONS]
    prompts = [describe_motion(scene) for scene in scenes]
    return [prompt for prompt in prompts if is_heldout_motion(prompt) == heldout]


def place_motion(scene: MovingScene, rng: random.Random) -> MovingScene:
    """Choose radius, path and background so that the object stays inside the picture."""
    r, travel = rng.uniform(*RADIUS), rng.uniform(*TRAVEL)
    low, high = MARGIN + r, IMAGE_SIZE - MARGIN - r
    # from side to side there is at least 64 - 2 (1 + 16) = 30 px to go
    start = rng.uniform(low, high - travel)
    across = rng.uniform(low, high)
    dx, dy = DIRECTIONS[scene.direction]
    along = start if dx + dy > 0 else start + travel
    x, y = (along, across) if dx else (across, along)
    return MovingScene(
        scene.color, scene.shape, scene.direction, x, y, r, travel, rng.randint(*BACKGROUND)
    )


def render_clip(scene: MovingScene) -> np.ndarray:
    """Draw a clip, uint8 (8, 32, 32, 3); what is unplaced is placed with seed 0 first."""
    if scene.x is None or scene.y is None or scene.r is None or scene.travel is None:
        scene = place_motion(scene, random.Random(0))
    assert scene.x is not None  # placed
    assert scene.y is not None
    assert scene.travel is not None
    dx, dy = DIRECTIONS[scene.direction]
    frames = []
    for step in range(FRAMES):
        far = scene.travel * step / (FRAMES - 1)
        thing = SceneObject(
            scene.color, scene.shape, "solid", None, scene.x + dx * far, scene.y + dy * far,
            scene.r, 0,
        )  # fmt: skip
        frames.append(render(Scene((thing,), background=scene.background)))
    large = np.stack(frames).astype(np.float32)
    small = large.reshape(FRAMES, CLIP_SIZE, 2, CLIP_SIZE, 2, 3).mean(axis=(2, 4))
    return np.rint(small).astype(np.uint8)


def sample_clip(rng: random.Random, heldout: bool = False) -> tuple[str, np.ndarray]:
    """A random prompt of seen (or held-out) objects and a true clip of it."""
    while True:
        scene = MovingScene(
            rng.choice(list(COLORS)), rng.choice(SHAPES), rng.choice(list(DIRECTIONS))
        )
        prompt = describe_motion(scene, rng)
        if is_heldout_motion(prompt) == heldout:
            return prompt, render_clip(place_motion(scene, rng))
