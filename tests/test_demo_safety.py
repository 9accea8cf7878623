"""A model's own safety checker in the demo: real checkers of tiny size, one that objects to all."""

import json

import pytest
import torch
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from PIL import Image
from tiny import build
from transformers import CLIPConfig
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from align.demo import align_handler, handlers, safety
from align.demo.training import View

VISION = {
    "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
    "image_size": 32, "patch_size": 8, "projection_dim": 8,
}  # fmt: skip


def model_with_checker(folder, threshold):
    """A tiny Stable Diffusion on disk, whose checker objects above a cosine of `threshold`."""
    build("sd").save_pretrained(folder)
    check = StableDiffusionSafetyChecker(CLIPConfig(vision_config=VISION, projection_dim=8))
    check.concept_embeds_weights.data.fill_(threshold)
    check.special_care_embeds_weights.data.fill_(2)
    check.save_pretrained(folder / "safety_checker")
    size = {"height": 32, "width": 32}
    prepare = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=size)
    prepare.save_pretrained(folder / "feature_extractor")
    index = json.loads((folder / "model_index.json").read_text())
    index["safety_checker"] = ["stable_diffusion", "StableDiffusionSafetyChecker"]
    index["feature_extractor"] = ["transformers", "CLIPImageProcessor"]
    (folder / "model_index.json").write_text(json.dumps(index))
    return str(folder)


@pytest.fixture(scope="module")
def strict(tmp_path_factory):
    """Objects to every picture: no cosine is below -1."""
    return model_with_checker(tmp_path_factory.mktemp("strict") / "sd", -1.5)


@pytest.fixture(scope="module")
def lenient(tmp_path_factory):
    return model_with_checker(tmp_path_factory.mktemp("lenient") / "sd", 1.5)


@pytest.fixture(autouse=True)
def runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def generated(model):
    """(brightest value of each update's pictures, the last status)."""
    found, said = [], ""
    sent = ["red", "", model, "", 3, False, 6, 3.0, 2, 0, 0]
    for gallery, _, status, *_ in handlers.make_generate(True)(*sent):
        if isinstance(gallery, list) and gallery:
            images = [Image.open(g[0]) if isinstance(g, tuple) else g for g in gallery]
            found.append(max(image.convert("L").getextrema()[1] for image in images))
        said = status if isinstance(status, str) else said
    return found, said


def test_pictures_that_the_checker_objects_to_are_black_and_no_preview_shows_them(
    strict, lenient, monkeypatch
):
    monkeypatch.setattr("align.demo.pictures.PREVIEW_EVERY", 0.0)
    monkeypatch.setattr("align.demo.pictures.PREVIEW_SHARE", 1.0)
    shown, status = generated(strict)
    assert shown == [0]
    assert "safety checker has blacked out 2 of 2" in status
    shown, status = generated(lenient)
    assert len(shown) == 1
    assert shown[0] > 0
    assert "safety checker" not in status


def test_a_model_without_a_checker_is_left_alone(tmp_path):
    build("sd").save_pretrained(tmp_path / "sd")
    images = torch.rand(2, 3, 16, 16)
    for model in (str(tmp_path / "sd"), "embedded/scenes"):
        assert not safety.ships(model)
        assert safety.screened(model, images) == (images, [])


def test_the_training_tab_shows_no_picture_of_a_model_with_a_checker(strict, tmp_path):
    before = tmp_path / "before.png"
    Image.new("RGB", (8, 8)).save(before)
    view = View(tmp_path, {"model": strict}, [], True, 0.0, before, before, None, {}, "")
    assert align_handler.pictures(view) == (None, None)
    view = View(tmp_path, {"model": "embedded/scenes"}, [], True, 0.0, before, None, None, {}, "")
    assert align_handler.pictures(view) == (before, None)
