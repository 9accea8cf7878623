"""`scenes-detector` with random weights, where it looks for its own."""

import pytest
import torch

import align.rewards.scenes_clip  # noqa: F401  it keeps the folder that is there when imported
from align.rewards import scenes_layers
from align.rewards.scenes_detector import CONFIG, NAME, ScenesDetector


def random_detector() -> ScenesDetector:
    """A detector with random weights that finds all kinds of things everywhere."""
    torch.manual_seed(0)
    model = ScenesDetector(**CONFIG).eval().requires_grad_(False)
    torch.nn.init.normal_(model.head[-1].weight, std=0.3)
    torch.nn.init.zeros_(model.head[-1].bias)
    return model


@pytest.fixture
def stored(tmp_path, monkeypatch):
    """Random weights of the detector where it looks for its own; the other rewards stay."""
    folder = tmp_path / "embedded" / "rewards"
    folder.mkdir(parents=True)
    for other in (scenes_layers.EMBEDDED / "rewards").iterdir():
        if other.name != NAME:
            (folder / other.name).symlink_to(other)
    model = random_detector()
    scenes_layers.save_weights(model.state_dict(), {"model": CONFIG}, folder / NAME)
    monkeypatch.setattr(scenes_layers, "EMBEDDED", folder.parent)
    return tmp_path
