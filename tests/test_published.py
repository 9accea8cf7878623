"""Published rewards at tiny size: references, gradients, batches, towers, damaged files."""

import pytest
import tiny_rewards as tiny
import torch
from formula import pictures

from align.rewards import load_reward

PROMPTS = list(tiny.PROMPTS)
NETWORKS = ("aesthetic", "aesthetic:v1", "blip-vqa", "clip", "da-score", "hps", "hps:2.0",
            "image-reward", "pickscore", "vqascore")  # fmt: skip
DETECTORS = ("detector", "detector:remove=dog", "detector:count=cube:2",
             "detector:model=hustvl/yolos-tiny", "detector:present=cat;model=hustvl/yolos-tiny",
             "detector:count=dog:3;model=hustvl/yolos-tiny")  # fmt: skip


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """Tiny weights of every reward where `align fetch` would put them."""
    folder = tiny.install(tmp_path_factory.mktemp("weights"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ALIGN_WEIGHTS", str(folder))
        patch.setenv("HF_HUB_OFFLINE", "1")
        yield folder


@pytest.fixture(scope="module")
def load(installed):
    """`load_reward`, each expression once."""
    known = {}

    def cached(expression: str):
        if expression not in known:
            known[expression] = load_reward(expression)
        return known[expression]

    return cached


def golden_scores(name: str, key: str) -> torch.Tensor:
    file = {"pickscore": "clip", "da-score": "blip-vqa", "aesthetic": "aesthetic-v2",
            "aesthetic:v1": "aesthetic-v1", "hps:2.0": "hps"}.get(name, name)  # fmt: skip
    stored = tiny.golden(file)[key]
    return torch.tensor(stored[name] if isinstance(stored, dict) else stored)


# --- against the references -----------------------------------------------------------------------


@pytest.mark.parametrize("name", NETWORKS)
def test_same_tensors_same_scores_as_the_reference(load, name):
    with torch.no_grad():
        ours = load(name)(pictures(2, 32, 32), PROMPTS)
    assert torch.allclose(ours, golden_scores(name, "scores"), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", NETWORKS)
def test_pictures_of_bytes_through_the_references_own_preprocessing(load, name):
    """The rest is Pillow's rounding to bytes, and its clipping of bicubic's overshoot."""
    images = (pictures(2, 40, 57) * 255).round() / 255
    with torch.no_grad():
        ours = load(name)(images, PROMPTS)
    unit = 1.0 if name == "image-reward" else 0.0  # its scores lie around 0, one unit wide
    theirs = golden_scores(name, "scores_pil")
    assert ((ours - theirs).abs() <= 1e-2 * theirs.abs().clamp_min(unit) + 1e-6).all()


def test_owlvit_sees_what_its_post_processing_reports(load):
    stored = tiny.golden("detector")
    tower = load("detector").functions["detector"].tower
    with torch.no_grad():
        odds, boxes = tower(pictures(2, 48, 48), [["cube"], ["dog"]])
    best = odds.squeeze(-1).sigmoid().sort(descending=True).values
    assert torch.allclose(best, torch.tensor(stored["owlvit"]), rtol=1e-4, atol=1e-6)
    assert torch.allclose(boxes, torch.tensor(stored["owlvit_boxes"]), atol=1e-5)


def test_yolos_odds_are_its_softmax(load):
    name = "detector:model=hustvl/yolos-tiny"
    tower = load(name).functions[name].tower
    with torch.no_grad():
        odds, _ = tower(pictures(2, 32, 48), [["cube", "dog"]] * 2)
    assert torch.allclose(
        odds.sigmoid(), torch.tensor(tiny.golden("detector")["yolos"]), rtol=1e-4, atol=1e-6
    )
