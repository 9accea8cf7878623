"""Diversity, distances to real and training pictures, counted passes."""

import json

import numpy as np
import pytest
import torch
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

import align
from align.diffusion.sample import make_noise
from align.evaluation.diversity import feature_diversity, scene_diversity
from align.evaluation.judging import trained_reward
from align.evaluation.quality import (
    clip_features,
    cmmd,
    frechet,
    in_batches,
    nearest_distance,
    training_pictures,
    true_scenes,
)
from align.evaluation.spending import Spent, check_quiet, parse_budgets, spending_of
from align.rewards import load_reward
from align.scenes import verify
from evaluation.helpers import tiny


def thing(x, y, r, texture="solid", size="small", color="red", shape="star"):
    keys = ("color", "shape", "texture", "size", "x", "y", "r")
    return dict(zip(keys, (color, shape, texture, size, x, y, r), strict=True))


def test_scene_diversity_compares_the_same_objects():
    first = [thing(10, 10, 8), thing(40, 40, 8)]
    swapped = [thing(40, 43, 8), thing(10, 14, 10, texture="striped")]
    found = scene_diversity("two red stars", [first, swapped])
    assert found == {"position": 3.5, "radius": 1.0, "unsaid": 0.25}
    assert scene_diversity("two red stars", [first, first])["position"] == 0
    assert scene_diversity("two red stars", [first]) is None


def test_what_the_prompt_says_is_not_diversity():
    pictures = [[thing(10, 10, 15, size="large")], [thing(10, 10, 15, size="large")]]
    assert "unsaid" not in scene_diversity("a large solid red star", pictures)
    found = scene_diversity("a large red star", [[thing(1, 1, 15, "striped")], pictures[0]])
    assert found["unsaid"] == 1


def test_feature_diversity_is_the_mean_cosine_distance():
    features = torch.tensor([[1.0, 0], [0, 1.0], [1.0, 0]])
    assert feature_diversity(features) == pytest.approx(2 / 3)
    with pytest.raises(ValueError, match="at least 2"):
        feature_diversity(features[:1])


def test_frechet_of_known_normal_distributions():
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(20000, 3, generator=generator)
    b = torch.randn(20000, 3, generator=generator) * torch.tensor([1.0, 2.0, 3.0]) + 1
    assert frechet(a, a) == pytest.approx(0, abs=1e-6)
    assert frechet(a, b) == pytest.approx(3 + 0 + 1 + 4, rel=0.03)


def test_cmmd_is_zero_for_the_same_and_grows_with_the_gap():
    a = torch.nn.functional.normalize(torch.randn(50, 8), dim=-1)
    assert cmmd(a, a) == pytest.approx(0, abs=1e-9)
    far = [cmmd(a, a + shift) for shift in (0.1, 0.5, 1.0)]
    assert 0 < far[0] < far[1] < far[2]
    # exp(-d²/200) of two points at distance 10: 2 - 2 exp(-1/2), times 1000
    point, other = torch.zeros(1, 2), torch.tensor([[10.0, 0]])
    assert cmmd(point, other) == pytest.approx(1000 * (2 - 2 * np.exp(-0.5)))


def test_true_scenes_show_their_prompts():
    prompts = ["two green stars", "a red circle left of a blue square"]
    images = torch.stack(true_scenes(prompts, 4, 0))
    assert verify(prompts * 2, images)[0].tolist() == [1, 1, 1, 1]
    assert not torch.equal(images[0], images[2])


def test_a_training_picture_lies_at_distance_zero():
    training = training_pictures(100)
    other = torch.stack(true_scenes(["two green stars"], 1, 0))
    apart = nearest_distance(list(torch.cat([training[7:8], other])), training)
    assert apart[0] == 0
    wanted = (training - other).square().flatten(1).mean(1).sqrt().min()
    assert apart[1] == pytest.approx(wanted.item(), abs=1e-4)


def test_a_users_clip_gives_features_of_any_size(tmp_path):
    torch.manual_seed(0)
    config = CLIPVisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        image_size=32, patch_size=16, projection_dim=6,
    )  # fmt: skip
    CLIPVisionModelWithProjection(config).save_pretrained(tmp_path / "clip")
    CLIPImageProcessor(size=32, crop_size=32).save_pretrained(tmp_path / "clip")
    features = clip_features(str(tmp_path / "clip"))
    images = [torch.rand(3, 20, 30), torch.rand(3, 64, 64), torch.rand(3, 64, 64)]
    found = in_batches(features, images)
    assert found.shape == (3, 6)
    torch.testing.assert_close(found.norm(dim=-1), torch.ones(3))
    torch.testing.assert_close(found[1:], features(torch.stack(images[1:])))
    with pytest.raises(FileNotFoundError, match=r"--clip .*nothing is no CLIP folder"):
        clip_features(str(tmp_path / "nothing"))


def test_passes_are_counted_by_hooks_whoever_makes_them():
    pipe, reward = tiny(), load_reward("jpeg,jpeg-complexity")
    with spending_of(pipe, reward) as spent:
        images = align.generate(pipe, ["a", "b"], seed=0, num_inference_steps=3)
        reward(images, ["a", "b"])
    assert (spent.images, spent.generator_forwards, spent.reward_forwards) == (2, 12, 4)
    assert (spent.generator_backwards, spent.reward_backwards) == (0, 0)
    assert spent.seconds > 0
    noise = make_noise(pipe, [0]).requires_grad_()
    settings = {"num_inference_steps": 2, "guidance_scale": 1.0, "grad_steps": "all"}
    with spending_of(pipe, reward) as spent:
        images = align.generate(pipe, ["a"], latents=noise, **settings)
        reward(images, ["a"]).sum().backward()
    assert (spent.generator_forwards, spent.generator_backwards) == (2, 2)
    assert (spent.reward_forwards, spent.reward_backwards) == (2, 2)
    assert "terms" not in vars(reward)
    with spending_of(pipe, None) as spent:
        pass
    assert (spent.generator_forwards, spent.images) == (0, 0)


def test_shares_and_sums_of_what_was_spent():
    one = Spent(images=4, generator_forwards=80, seconds=2.0, cpu_seconds=1.0).share(0.25)
    assert (one.images, one.generator_forwards, one.seconds) == (1, 20, 0.5)
    assert (one + one).generator_forwards == 40


def test_budgets_of_a_comparison():
    assert [str(one) for one in parse_budgets("16images,4images")] == ["4images", "16images"]
    with pytest.raises(ValueError, match="have one unit"):
        parse_budgets("4images,30s")
    with pytest.raises(ValueError, match="budget is '4'"):
        parse_budgets("4")


def test_a_busy_machine_is_refused(monkeypatch):
    monkeypatch.setattr("psutil.getloadavg", lambda: (1.5, 1.0, 1.0))
    with pytest.raises(RuntimeError, match=r"the machine is busy \(load 1.50"):
        check_quiet(allow_busy=False)
    assert check_quiet(allow_busy=True) == 1.5
    monkeypatch.setattr("psutil.getloadavg", lambda: (0.1, 1.0, 1.0))
    assert check_quiet(allow_busy=False) == 0.1


@pytest.mark.parametrize(
    ("reward", "known"),
    [
        ("jpeg=1,rewards.py:mine", True),
        ("carinox", True),
        ("brightness", False),
        ("<lambda>", False),
    ],
)
def test_a_function_given_in_python_is_no_reward_to_report(tmp_path, reward, known):
    (tmp_path / "run.json").write_text(json.dumps({"config": {"reward": reward}}))
    assert trained_reward(str(tmp_path)) == (reward if known else None)
