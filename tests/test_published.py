"""Published rewards at tiny size against their references, and the keys of original files."""

import pytest
import tiny_rewards as tiny
import torch
from formula import numbers, pictures
from tiny_rewards import NETWORKS, installed_weights, loader, original_weights

from align.rewards.aesthetic import fold
from align.rewards.clip_t5 import convert as convert_clip_t5
from align.rewards.clip_t5 import load_clip_t5
from align.rewards.clip_tower import convert_open_clip, load_open_clip
from align.rewards.image_reward import convert as convert_image_reward
from align.rewards.mps import convert as convert_mps

PROMPTS = list(tiny.PROMPTS)
installed = installed_weights
load = loader


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


def test_words_that_are_hidden_from_mps(load):
    mps = load("mps").functions["mps"]
    tokens, words = numbers("tokens", (2, 5, 16)).float(), numbers("words", (2, 4, 16)).float()
    seen = torch.tensor([[True, False, False, True], [True, True, True, False]])
    with torch.no_grad():
        ours = mps.cross(tokens, words, seen)
        blind = mps.cross(tokens, words, torch.ones_like(seen))
        word = mps.read(PROMPTS)[0][:, :1]
        near = mps.near(word * torch.tensor([1.0, 0.5, 0.005, 0.02])[:, None])
        # A stronger neighbour in the batch hides nothing: each prompt has its own maximum.
        scaled = mps.near(word * torch.tensor([1.0, 1e-4])[:, None, None])
    assert torch.allclose(ours, torch.tensor(tiny.golden("mps")["masked"]), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(ours, blind, rtol=1e-2, atol=1e-2)
    assert near.tolist() == [[True, True, False, True]] * 2
    assert scaled.all()


# --- keys of original files -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "convert"),
    [
        ("hps", lambda tensors: {"": convert_open_clip(tensors)}),
        ("image-reward", convert_image_reward),
        ("mps", convert_mps),
        ("vqascore", convert_clip_t5),
    ],
)
def test_every_original_key_has_a_place(load, name, convert):
    """Strictly: no key of the reference is left over, none of ours goes without."""
    reward = load(name).functions[name]
    parts = convert(original_weights(name))
    modules = {
        "hps": lambda: {"": reward.tower.model},
        "image-reward": lambda: {"vision": reward.vision, "text": reward.text},
        "mps": lambda: {"clip": reward.model, "cross": reward.cross},
        "vqascore": lambda: {"t5": reward.t5, "vision": reward.vision},
    }[name]()
    for part, module in modules.items():
        assert set(parts[part]) == set(module.state_dict())
        for key, value in module.state_dict().items():
            assert torch.equal(value, parts[part][key]), key
    assert not parts.get("rest")


def test_prefixes_buffers_and_pretraining_heads_are_taken_off():
    original = original_weights("hps")
    wrapped = {f"module.{key}": value for key, value in original.items()}
    extra = wrapped | {"module.attn_mask": torch.zeros(2, 2)}
    assert convert_open_clip(extra).keys() == convert_open_clip(original).keys()
    ranked = original_weights("image-reward") | {
        "blip.itm_head.weight": torch.zeros(2, 2),
        "blip.text_encoder.embeddings.position_ids": torch.zeros(1, 4),
        "blip.image_queue": torch.zeros(2),
    }
    assert convert_image_reward(ranked)["rest"] == {}
    older = original_weights("mps") | {
        "mps.model.text_model.embeddings.position_ids": torch.zeros(1, 4)
    }
    assert convert_mps(older)["clip"].keys() == convert_mps(original_weights("mps"))["clip"].keys()


def test_foreign_and_incomplete_checkpoints_are_named(installed, tmp_path):
    tensors = original_weights("hps")
    path = tmp_path / "open_clip_config.json"
    path.write_text((installed / "xswu/HPSv2/open_clip_config.json").read_text())
    del tensors["ln_final.bias"]
    torch.save(tensors, tmp_path / "short.pt")
    with pytest.raises(ValueError, match=r"short.pt is not a checkpoint of this model: Missing"):
        load_open_clip(tmp_path / "short.pt")
    torch.save(
        tensors | {"ln_final.bias": torch.zeros(32), "x": torch.ones(1)}, path.parent / "x.pt"
    )
    with pytest.raises(ValueError, match=r"x.pt is not a checkpoint .*Unexpected key.*x"):
        load_open_clip(tmp_path / "x.pt")


def test_folding_a_head_is_exact(tmp_path):
    head = tiny.weights(tiny.golden("aesthetic-v2")["head"])
    layers = [torch.nn.Linear(*reversed(head[f"layers.{i}.weight"].shape)) for i in (0, 2, 4, 6, 7)]
    for layer, i in zip(layers, (0, 2, 4, 6, 7), strict=True):
        layer.load_state_dict({end: head[f"layers.{i}.{end}"] for end in ("weight", "bias")})
    features = torch.nn.functional.normalize(torch.randn(5, 16), dim=-1)
    step_by_step = torch.nn.Sequential(*layers)(features)
    torch.testing.assert_close(fold(head, tmp_path)(features), step_by_step, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="does not end in one number"):
        fold({"a.weight": torch.zeros(2, 3), "a.bias": torch.zeros(2)}, tmp_path)
    with pytest.raises(ValueError, match="layers do not follow"):
        fold(head | {"layers.2.weight": torch.zeros(3, 3)}, tmp_path)


def test_clip_t5_without_its_tower_takes_the_installed_one(installed, tmp_path):
    """Whether a file repeats CLIP's weights or not, they are there."""
    from align.rewards.catalogue import sources

    made = {k: v for k, v in original_weights("vqascore").items() if "vision_tower" not in k}
    torch.save(made, tmp_path / "pytorch_model.bin")
    config = installed / "zhiqiulin/clip-flant5-xl/config.json"
    (tmp_path / "config.json").write_text(config.read_text())
    _, words, tower = sources("vqascore")
    model = load_clip_t5(tmp_path, words, tower, "vqascore")
    expected = tiny.clip_model().vision_model.state_dict()
    assert all(torch.equal(v, expected[k]) for k, v in model.vision.state_dict().items())
