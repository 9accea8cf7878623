"""The exact value of taste on known renders, and the reward that has learned it."""

import functools
import random
from dataclasses import replace

import numpy as np
import pytest
import torch

import align
from align.rewards import load_judge, load_reward
from align.rewards.listing import list_rewards
from align.rewards.scenes_taste import NAME
from align.scenes import (
    CATEGORIES,
    Scene,
    SceneObject,
    layout,
    measure_taste,
    parse,
    prompt_set,
    read,
    render,
    sample,
)
from align.scenes.dataset import random_stated_scene
from align.scenes.grammar import COLORS, SHAPES

PROMPT = "a red circle"
reward = functools.cache(load_reward)


def thing(color="red", shape="circle", x=32.0, y=32.0, r=12.0, texture="solid", depth=0):
    return SceneObject(color, shape, texture, x=x, y=y, r=r, depth=depth)


def draw(*objects, ground=235) -> np.ndarray:
    return render(Scene(tuple(objects), background=ground))


def as_images(pictures) -> torch.Tensor:
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 255


def score(pictures, prompt=PROMPT) -> torch.Tensor:
    prompts = [prompt] * len(pictures) if isinstance(prompt, str) else prompt
    return reward(NAME)(as_images(pictures), prompts)


# --- the exact value -----------------------------------------------------------------------------


def test_known_renders_have_their_radius_and_gap():
    scenes = [
        Scene((thing(x=20, y=20, r=11), thing("blue", "square", x=45, y=42, r=13)), background=230),
        Scene((thing("green", "star", x=31, y=33, r=17.5),), background=245),
        Scene((thing("cyan", "ring", x=18, y=40, r=12), thing("black", "cross", x=46, y=18, r=14)),
              background=225),
        Scene((thing("yellow", "triangle", x=30, y=30, r=15, texture="striped"),), background=240),
    ]  # fmt: skip
    found = measure_taste([render(scene) for scene in scenes])
    assert found.radius.tolist() == pytest.approx([12, 17.5, 13, 15], abs=0.25)
    # 33.3 - 24 beside 20 - 11 and 64 - 45 - 13; 31 - 17.5; 18 - 12; 30 - 15
    assert found.gap.tolist() == pytest.approx([6, 13.5, 4, 15], abs=0.5)
    assert found.color_distance.tolist() == pytest.approx([0, 0, 0, 0], abs=0.002)
    assert found.evenness.tolist() == pytest.approx([1, 1, 1, 1], abs=1e-6)
    assert found.ground.tolist() == [230, 245, 225, 240]
    expected = 4 * found.radius / 19 + 0.5 + 1 + (found.ground - 225) / 20
    assert torch.allclose(found.value, expected, atol=0.005)


def test_overlapping_objects_have_a_gap_below_zero():
    front, rear = thing(x=26, r=12), thing("blue", "square", x=42, r=11, depth=1)
    found = measure_taste([draw(front, rear)])
    assert found.gap.item() == pytest.approx(16 - 23, abs=0.5)
    assert found.color_distance.item() == pytest.approx(0, abs=0.002)


@pytest.mark.parametrize("color", ["red", "blue", "black"])
def test_a_faded_colour_is_as_far_as_it_was_faded(color):
    picture, pure = draw(thing(color, r=14)).astype(float), np.array(COLORS[color], float)
    shift = np.array([20.0, 20.0, 20.0])
    faded = np.where((picture == pure).all(-1, keepdims=True), picture + shift, picture)
    found = measure_taste([faded.astype(np.uint8)])
    assert found.color_distance.item() == pytest.approx(20 / 255, abs=0.003)


def test_striped_ground_is_as_uneven_as_its_deviation():
    picture = draw(thing(r=10)).astype(float)
    lines = 6.0 * (np.arange(64) % 3 == 0)[None, :, None]  # of a third of the columns
    found = measure_taste([(picture - lines).clip(0, 255).astype(np.uint8)])
    assert found.evenness.item() == pytest.approx(1 - 6 / 3**0.5 / 8, abs=0.02)
    assert found.ground.item() == 235


def test_the_value_rises_with_the_radius():
    for shape in SHAPES:
        found = measure_taste([draw(thing(shape=shape, r=r)) for r in (8, 10, 12, 14, 16, 18)])
        assert (found.value.diff() > 0.2).all(), shape


def test_no_object_is_worth_its_ground_alone():
    found = measure_taste([np.full((64, 64, 3), 235, np.uint8)])
    assert (found.radius.item(), found.gap.item(), found.color_distance.item()) == (0, 0, 1)
    assert found.value.item() == pytest.approx(0.5)


def test_the_forms_of_pictures_agree_and_others_are_refused():
    pictures = [sample("size", seed)[1] for seed in range(2)]
    as_bytes, as_floats = measure_taste(pictures), measure_taste(as_images(pictures))
    assert torch.equal(as_bytes.value, as_floats.value)
    assert as_bytes.radius[0].item() == pytest.approx(np.mean([o.r for o in read(pictures[0])]))
    half = measure_taste(as_images(pictures).bfloat16())
    assert torch.allclose(half.radius, as_bytes.radius, atol=0.2)
    with pytest.raises(ValueError, match="a scenes picture is uint8"):
        measure_taste([np.zeros((32, 32, 3), np.uint8)])


def test_the_judge_is_the_exact_value_and_no_reward():
    pictures = [sample("single", seed)[1] for seed in range(3)]
    judged = load_judge("taste")(as_images(pictures), [PROMPT] * 3)
    assert torch.equal(judged, measure_taste(pictures).value)
    with pytest.raises(ValueError, match="'taste' is a judge, not a training signal"):
        load_reward("taste")


# --- the reward ----------------------------------------------------------------------------------


def test_it_is_listed_with_its_weights_of_at_most_a_megabyte():
    (listed,) = (one for one in list_rewards() if one.name == NAME)
    assert listed.installed
    assert not listed.judge_only
    assert 0 < listed.size <= 1_000_000


def placed_scenes(count: int) -> list[Scene]:
    rng = random.Random(3)
    scenes = []
    while len(scenes) < count:
        category = CATEGORIES[len(scenes) % len(CATEGORIES)]
        if category != "3d_spatial":
            scenes.append(layout(random_stated_scene(category, rng), rng))
        else:
            scenes.append(layout(parse("a red circle and a blue square"), rng))
    return scenes


def grown(scene: Scene) -> Scene | None:
    """All radii greater by a seventh; None where that leaves less room than is full."""
    objects = tuple(replace(o, r=o.r * 8 / 7) for o in scene.objects)
    larger = replace(scene, objects=objects)
    return larger if measure_gap(larger) >= 4 and max(o.r for o in objects) < 19 else None


def measure_gap(scene: Scene) -> float:
    from align.scenes.taste import least_gap

    return least_gap(scene.objects)


def washed(scene: Scene) -> np.ndarray:
    """Colours a fifth of the way to the ground."""
    picture = render(scene).astype(float)
    return np.rint(picture + 0.2 * (scene.background - picture)).astype(np.uint8)


def crowded(scene: Scene) -> Scene | None:
    """All objects moved into the corner until one touches the border."""
    dx = min(o.x - o.r for o in scene.objects)
    dy = min(o.y - o.r for o in scene.objects)
    if min(dx, dy) < 3 or measure_gap(scene) < 4:
        return None
    return replace(scene, objects=tuple(replace(o, x=o.x - dx, y=o.y - dy) for o in scene.objects))


def pairs(kind: str) -> tuple[list, list]:
    """Pictures, and the same with one property better."""
    worse, better = [], []
    for number, scene in enumerate(placed_scenes(300 if kind == "size" else 120)):
        if kind == "size" and (larger := grown(scene)):
            worse.append(render(scene)), better.append(render(larger))
        elif kind == "room" and (corner := crowded(scene)):
            worse.append(render(corner)), better.append(render(scene))
        elif kind == "color":
            worse.append(washed(scene)), better.append(render(scene))
        elif kind == "light":
            worse.append(render(replace(scene, background=228)))
            better.append(render(replace(scene, background=240)))
        elif kind == "even":
            clean = render(replace(scene, background=240))
            noise = np.random.default_rng(number).normal(0, 8, (8, 8, 3)).repeat(8, 0).repeat(8, 1)
            ground = (clean == 240).all(-1, keepdims=True)
            mottled = np.rint(clean + ground * noise).clip(0, 255).astype(np.uint8)
            worse.append(mottled), better.append(clean)
    return worse, better


@pytest.mark.parametrize("kind", ["size", "room", "color", "light", "even"])
def test_it_orders_renders_that_differ_in_one_property(kind):
    worse, better = pairs(kind)
    assert len(worse) >= 20
    assert (score(better) > score(worse)).float().mean() >= 0.95


def test_it_is_near_the_exact_value_of_renders():
    pictures = [render(scene) for scene in placed_scenes(60)]
    exact = measure_taste(pictures).value
    assert (score(pictures) - exact).abs().mean() < 0.3
    assert torch.corrcoef(torch.stack([score(pictures), exact]))[0, 1] > 0.9


def test_it_leaves_objects_stated_small_alone():
    small, large = "a small red circle", "a red circle"
    nine, fourteen = draw(thing(r=9)), draw(thing(r=14))
    assert score([fourteen], large) > score([nine], large) + 0.4
    assert score([nine], small) > score([fourteen], small) + 0.4
    # in a picture of two, the other one may grow
    both = "a small red circle and a large blue square"
    pictures = [
        draw(thing(x=14, y=14, r=red), thing("blue", "square", x=42, y=42, r=blue))
        for red, blue in ((9, 14), (9, 18), (13, 14))
    ]
    plain, blue, red = score(pictures, both).tolist()
    assert blue > plain > red


def test_objects_that_shall_overlap_are_not_pulled_apart():
    over, apart = "a red circle in front of a blue square", "a red circle next to a blue square"
    pictures = [
        draw(thing("blue", "square", x=a, r=12), thing(x=b, r=12, depth=1))
        for a, b in ((24, 38), (17, 45))
    ]
    overlapping, separate = score(pictures, apart).tolist()
    assert separate > overlapping + 0.1
    overlapping, separate = score(pictures, over).tolist()
    assert abs(separate - overlapping) < 0.25


def test_it_follows_the_exact_value_of_generated_pictures():
    pipe = align.load_pipeline("embedded/scenes")
    prompts = [prompt_set(f"scenes-{c}")[0] for c in ("single", "color", "shape", "size")] * 4
    generator = [torch.Generator().manual_seed(i) for i in range(len(prompts))]
    with torch.no_grad():
        images = align.generate(
            pipe, prompts, generator=generator, num_inference_steps=6, guidance_scale=3.0
        )
    said, exact = reward(NAME)(images, [PROMPT] * len(images)), measure_taste(images).value
    assert torch.corrcoef(torch.stack([said, exact]))[0, 1] > 0.7


def test_its_gradient_makes_pixels_of_a_larger_object():
    images = as_images([draw(thing(r=10)), draw(thing("blue", "square", r=9))]).requires_grad_()
    (gradient,) = torch.autograd.grad(reward(NAME)(images, [PROMPT] * 2).sum(), images)
    assert gradient.isfinite().all()
    assert (gradient.flatten(1).norm(dim=1) > 1e-3).all()
    # following it a little grows the object in the verifier's eyes, or leaves it: never shrinks
    step = 3 * gradient / gradient.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    before, after = (measure_taste(x.detach().clamp(0, 1)).radius for x in (images, images + step))
    assert (after > before - 0.05).all()
