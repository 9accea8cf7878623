"""The embedded reward models: gradients, independence of the batch, and what they tell apart."""

import functools
import random

import numpy as np
import pytest
import torch

from align.rewards import load_reward, scenes_layers
from align.scenes import describe, layout, parse, render, sample
from align.scenes.grammar import CATEGORIES

NAMES = ("scenes-clip", "scenes-detector", "scenes-preference", "scenes-taste", "scenes-vqa")


load_once = functools.cache(load_reward)


def to_images(arrays) -> torch.Tensor:
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).float() / 255


def pictures(count: int) -> tuple[list[str], torch.Tensor]:
    """Prompts of every category and true pictures of them, away from 0 and 1."""
    pairs = [sample(CATEGORIES[i % len(CATEGORIES)], seed=500 + i) for i in range(count)]
    return [prompt for prompt, _ in pairs], 0.05 + 0.9 * to_images([image for _, image in pairs])


def pictures_of(prompt: str, count: int = 12) -> torch.Tensor:
    """Different true pictures of one prompt."""
    rng = random.Random(7)
    return to_images([render(layout(parse(prompt), rng)) for _ in range(count)])


@pytest.mark.parametrize("name", NAMES)
def test_gradients_equal_finite_differences(name):
    prompts, images = pictures(4)
    reward = load_reward(name).double()
    images = images.double().requires_grad_()
    scores = reward(images, prompts)
    assert scores.dtype == torch.float64
    (gradient,) = torch.autograd.grad(scores.sum(), images)
    assert (gradient.flatten(1).norm(dim=1) > 0).all()
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        direction = torch.randn(images.shape, generator=generator, dtype=torch.float64)
        direction /= direction.norm()
        with torch.no_grad():
            up, down = (reward(images + s * 1e-4 * direction, prompts) for s in (1, -1))
        numeric = (up - down).sum().item() / 2e-4
        assert (gradient * direction).sum().item() == pytest.approx(numeric, rel=1e-4, abs=1e-8)


@pytest.mark.parametrize("name", NAMES)
def test_ten_steps_of_ascent_raise_the_score(name):
    prompts, images = pictures(4)
    images = images.roll(1, 0)  # pictures of other prompts
    start = load_once(name)(images, prompts)
    for _ in range(10):
        images = images.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(load_once(name)(images, prompts).sum(), images)
        scale = gradient.flatten(1).square().mean(1).sqrt()[:, None, None, None]
        images = (images + 0.004 * gradient / scale).clamp(0, 1)
    assert (load_once(name)(images.detach(), prompts) > start).all()


@pytest.mark.parametrize("name", NAMES)
def test_scores_do_not_depend_on_the_rest_of_the_batch(name):
    prompts, images = pictures(9)
    together = load_once(name)(images, prompts)
    alone = [load_once(name)(images[i : i + 1], prompts[i : i + 1]) for i in range(9)]
    assert torch.allclose(together, torch.cat(alone), atol=1e-5, rtol=0)
    in_pieces = load_reward(name, micro_batch_size=4)(images, prompts)
    assert torch.allclose(together, in_pieces, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", NAMES)
def test_weights_are_frozen_and_precision_is_kept(name):
    assert not any(p.requires_grad for p in load_once(name).parameters())
    assert load_once(name).differentiable
    prompts, images = pictures(2)
    assert load_once(name)(images, prompts).dtype == torch.float32


@pytest.mark.parametrize("name", NAMES)
def test_other_sizes_are_resized(name):
    prompts, images = pictures(3)
    large = torch.nn.functional.interpolate(images, scale_factor=2.0, mode="nearest")
    small, resized = load_once(name)(images, prompts), load_once(name)(large, prompts)
    if name == "scenes-detector":  # which tells a blurred edge from a sharp one, yet reads it
        assert (resized > load_once(name)(images.roll(1, 0), prompts)).all()
    else:
        assert torch.allclose(small, resized, atol=0.35 * small.abs().max().item() + 0.05)


# what each reward is made for: a prompt, and one whose pictures must score lower under it
KNOWN = [
    ("scenes-clip", "a red circle", "a blue circle"),
    ("scenes-clip", "a red circle", "a red triangle"),
    ("scenes-clip", "a large striped blue square", "a large solid blue square"),
    ("scenes-vqa", "a red circle", "a red square"),
    ("scenes-vqa", "a red circle and a blue square", "a blue circle and a red square"),
    ("scenes-vqa", "a large striped blue square", "a large solid blue square"),
    ("scenes-detector", "two green circles", "three green circles"),
    ("scenes-detector", "three yellow triangles", "two yellow triangles"),
    ("scenes-detector", "a red circle", "a red square"),
    ("scenes-detector", "a red circle", "a red circle and a blue square"),
    ("scenes-preference", "a red circle", "a blue circle"),
    ("scenes-preference", "a red circle and a blue square", "a green circle and a cyan square"),
]


@pytest.mark.parametrize(("name", "prompt", "other"), KNOWN)
def test_true_pictures_score_higher(name, prompt, other):
    with torch.no_grad():
        true = load_once(name)(pictures_of(prompt), [prompt] * 12)
        false = load_once(name)(pictures_of(other), [prompt] * 12)
    assert (true[:, None] > false).float().mean() > 0.8


def test_paraphrases_are_one_prompt_to_the_rewards_that_parse():
    scene = parse("a red circle to the left of a blue square")
    images = pictures_of("a red circle to the left of a blue square", 4)
    texts = [describe(scene, random.Random(seed)) for seed in range(4)]
    assert len(set(texts)) > 1
    for name in ("scenes-vqa", "scenes-detector"):
        scores = [load_once(name)(images, [text] * 4) for text in texts]
        assert all(torch.equal(scores[0], score) for score in scores[1:])


def test_prompts_outside_the_grammar():
    _, images = pictures(1)
    assert torch.isfinite(
        load_once("scenes-vqa")(images, ["A dog sleeps under a red table."])
    ).all()
    assert torch.isfinite(load_once("scenes-clip")(images, ["a " + "very " * 50 + "red dog"])).all()
    for name in ("scenes-detector", "scenes-taste"):
        with pytest.raises(ValueError, match="cannot read 'dog'"):
            load_once(name)(images, ["a red dog"])


def test_missing_weights_and_arguments(monkeypatch, tmp_path):
    for name in NAMES:
        soft = " but soft" * (name == "scenes-detector")
        with pytest.raises(ValueError, match=f"reward '{name}' takes no argument{soft}, got 'x'"):
            load_reward(f"{name}:x")
    monkeypatch.setattr(scenes_layers, "EMBEDDED", tmp_path)
    for name in NAMES:
        with pytest.raises(FileNotFoundError, match=f"weights of reward '{name}' are not install"):
            load_reward(name)


def test_all_embedded_rewards_take_9_megabytes():
    files = (scenes_layers.EMBEDDED / "rewards").rglob("*.safetensors")
    assert sum(file.stat().st_size for file in files) < 9_000_000
