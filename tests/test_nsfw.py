"""LAION's NSFW head on CLIP: its layers, what it refuses, its gradient."""

import pytest
import torch
from formula import pictures
from tiny_nsfw import FILE, WIDTHS
from tiny_rewards import installed_weights

from align.rewards import load_reward
from align.rewards.nsfw import LAYERS

installed = installed_weights


@pytest.fixture(scope="module")
def head(installed):
    """The tensors of the small head, and the file that they are installed in."""
    path = installed / FILE
    return torch.load(path, weights_only=True), path


def by_hand(tensors, features):
    """Linear layers with ReLU after all but the last two, in float64."""
    x = features.double()
    for place in LAYERS:
        x = x @ tensors[f"layers.{place}.weight"].double().T + tensors[f"layers.{place}.bias"]
        x = x.relu() if place not in LAYERS[-2:] else x
    return 1 - x.squeeze(-1)


def test_scores_are_those_of_the_layers_and_each_picture_by_itself(head):
    tensors, _ = head
    reward = load_reward("nsfw")
    images, prompts = pictures(3, 40, 48), ["a cube", "a dog", "a cat"]
    with torch.no_grad():
        scores = reward(images, prompts)
        features = reward.functions["nsfw"].tower.images(images)
        alone = torch.cat([reward(image[None], ["a cube"]) for image in images])
    assert torch.allclose(scores.double(), by_hand(tensors, features), rtol=1e-4, atol=1e-6)
    assert torch.allclose(scores, alone, atol=1e-5)


def test_heads_of_something_else_are_refused(head, tmp_path):
    tensors, path = head
    assert load_reward(f"nsfw:{path}").functions
    with pytest.raises(ValueError, match="nsfw:x is no file or folder"):
        load_reward("nsfw:x")
    short = {k: v for k, v in tensors.items() if not k.startswith("layers.16")}
    torch.save(short, tmp_path / "short.pth")
    with pytest.raises(ValueError, match=r"short.pth is not LAION's NSFW head"):
        load_reward(f"nsfw:{tmp_path}/short.pth")
    wider = dict(tensors)
    wider["layers.0.weight"] = torch.zeros(WIDTHS[0], 3)
    torch.save(wider, tmp_path / "wider.pth")
    with pytest.raises(ValueError, match="reads features of 3 numbers"):
        load_reward(f"nsfw:{tmp_path}/wider.pth")
