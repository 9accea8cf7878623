"""Measures against hacking: Vendi, grids, tone; what a run says of them."""

import colorsys
import io
import json
import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from train_helpers import run, small_config
from transformers import Dinov2Config, Dinov2Model
from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil

from align.scenes import CATEGORIES, layout, render
from align.scenes.dataset import random_stated_scene
from align.training import measures
from align.training.measures import (
    dinov2_features,
    grid,
    grid_profiles,
    grid_rise,
    grid_rises,
    means,
    measure,
    periods,
    strongest,
    tone,
    untrained_features,
    vendi,
)


def test_vendi_is_its_formula():
    generator = torch.Generator().manual_seed(0)
    for n, d in ((4, 9), (9, 4), (2, 2), (1, 5)):
        rows = torch.randn(n, d, generator=generator, dtype=torch.float64)
        unit = (rows / rows.norm(dim=1, keepdim=True)).numpy()
        values = np.linalg.eigvalsh(unit @ unit.T / n)
        entropy = -sum(v * np.log(v) for v in values if v > 1e-15)
        assert vendi(rows) == pytest.approx(np.exp(entropy), abs=1e-6)
        assert vendi(5 * rows) == pytest.approx(vendi(rows), abs=1e-6)
    assert vendi(torch.randn(1, 7).expand(6, 7)) == pytest.approx(1, abs=1e-6)
    assert vendi(torch.eye(6)) == pytest.approx(6, abs=1e-6)
    two = torch.tensor([[1.0, 0.0], [0.6, 0.8]])  # eigenvalues (1 ± cos)/2
    assert vendi(two) == pytest.approx(np.exp(-0.8 * np.log(0.8) - 0.2 * np.log(0.2)), abs=1e-6)


def renders(count, seed, size):
    rng = random.Random(seed)
    small = torch.stack(
        [
            torch.from_numpy(
                render(layout(random_stated_scene(CATEGORIES[i % len(CATEGORIES)], rng), rng))
            )
            for i in range(count)
        ]
    )
    pictures = small.permute(0, 3, 1, 2).float() / 255
    big = F.interpolate(pictures, size=(size, size), mode="bicubic", align_corners=False)
    return (255 * big.clamp(0, 1)).round() / 255


@pytest.mark.parametrize("period", [8, 16, 32])
@pytest.mark.parametrize("axes", ["both", "rows"])
def test_a_grid_of_one_level_is_seen(period, axes):
    """On 16 renders at 512 pixels; other clean renders are not flagged."""
    clean, others = renders(16, 0, 512), renders(16, 1, 512)
    hacked = clean.clone()
    hacked[..., ::period, :] += 1 / 255
    if axes == "both":
        hacked[..., ::period] += 1 / 255
    hacked = hacked.clamp(0, 1)
    before = grid_profiles(clean, period)
    rise, low, high = grid_rise(before, grid_profiles(hacked, period))
    assert rise > 0.01
    assert 0 < low <= rise <= high
    assert grid_rise(before, before) == (0, 0, 0)
    rise, low, high = grid_rise(before, grid_profiles(others, period))
    assert low < 0 < high


def test_the_grid_is_its_formula():
    images = torch.rand(3, 3, 20, 24, generator=torch.Generator().manual_seed(0))
    grey = (images * torch.tensor([0.299, 0.587, 0.114])[:, None, None]).sum(1).numpy()
    found = grid_profiles(images, 5).numpy()
    for n, picture in enumerate(grey):
        for axis, pixels in enumerate((picture, picture.T)):
            height, width = pixels.shape
            sums, counts = np.zeros(5), np.zeros(5)
            for x in range((width - 1) // 5 * 5):
                for y in range(height):
                    sums[x % 5] += min(abs(pixels[y, x + 1] - pixels[y, x]), 4 / 255)
                    counts[x % 5] += 1
            np.testing.assert_allclose(found[n, axis], sums / counts, rtol=1e-5)
    phases = found.mean(0)
    shares = [(p.max() - np.median(p)) / np.median(p) for p in phases]
    assert grid(torch.from_numpy(found)) == pytest.approx(max(shares), rel=1e-3)
    assert grid(grid_profiles(torch.full((2, 3, 32, 32), 0.5), 8)) == 0  # nothing there
    assert periods((64, 64), (4, 8)) == [4, 8]
    assert periods((512, 768), (8, 16)) == [8, 16, 32, 64]
    assert periods((6, 6), (8,)) == []


def test_tone_is_its_formulas():
    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    images[:, :, :4] = 1.0
    found = tone(images)
    for n, picture in enumerate(images.permute(0, 2, 3, 1).numpy()):
        flat = picture.reshape(-1, 3).astype(float)
        right = np.mean([colorsys.rgb_to_hsv(*pixel)[1] for pixel in flat])
        assert found["saturation"][n].item() == pytest.approx(right, abs=1e-5)
        red, green, blue = (255 * flat).T
        rg, yb = red - green, (red + green) / 2 - blue
        spread = np.hypot(rg.std(ddof=1), yb.std(ddof=1))
        right = spread + 0.3 * np.hypot(rg.mean(), yb.mean())
        assert found["colourfulness"][n].item() == pytest.approx(right, rel=1e-4)
        near = ((flat <= 2 / 255) | (flat >= 253 / 255)).mean()
        assert found["clipped"][n].item() == pytest.approx(near, abs=1e-6)
        file = io.BytesIO()
        Image.fromarray((255 * picture).round().astype(np.uint8)).save(file, "JPEG", quality=95)
    assert found["detail"].min() > 0
    plain = tone(torch.full((1, 3, 16, 16), 0.5))
    assert {n: float(v) for n, v in plain.items() if n != "jpeg-kb"} == pytest.approx(
        {"clipped": 0, "saturation": 0, "colourfulness": 0, "detail": 0}, abs=1e-9
    )


def test_measures_of_prompts():
    images = renders(8, 0, 64)
    found = json.loads(json.dumps(measure(images, 2, (4, 8), lambda x: x.flatten(1))))
    assert {len(values) for values in found["tone"].values()} == {4}
    assert {p: np.array(v).shape for p, v in found["grid"].items()} == {
        "4": (4, 2, 4),
        "8": (4, 2, 8),
    }
    assert len(found["vendi"]) == 4
    assert all(1 <= value <= 2 for value in found["vendi"])
    hacked = images.clone()
    hacked[..., ::8] = (hacked[..., ::8] + 3 / 255).clamp(0, 1)
    rises = grid_rises(found, measure(hacked, 2, (4, 8), None))
    period, (_, low, _) = strongest(rises)
    assert period == "8"
    assert low > 0
    assert "vendi" not in means(measure(hacked, 2, (4,), None))


def test_features_that_were_not_trained_on(monkeypatch, tmp_path):
    monkeypatch.setenv("ALIGN_WEIGHTS", str(tmp_path))
    name, features = untrained_features(["jpeg"], None, scenes=True)
    assert name == "scenes-clip"
    assert features(renders(2, 0, 64)).shape[0] == 2
    assert untrained_features(["scenes-clip"], None, scenes=True) is None
    assert untrained_features(["jpeg"], None, scenes=False) is None
    monkeypatch.setattr(measures, "missing_files", lambda source: [])
    monkeypatch.setattr(measures, "dinov2", lambda device: torch.relu)
    monkeypatch.setattr(measures, "_clip", lambda device: torch.abs)
    assert untrained_features(["clip"], None, scenes=False) == ("dinov2", torch.relu)
    monkeypatch.setattr(
        measures, "missing_files", lambda source: ["model"] * ("dinov2" in source.repo)
    )
    for trained in (["clip"], ["aesthetic"]):  # which see by CLIP ViT-L/14
        assert untrained_features(trained, None, scenes=False) is None
    assert untrained_features(["hps"], None, scenes=False) == ("clip", torch.abs)


def test_dinov2_sees_as_its_processor_does():
    torch.manual_seed(0)
    model = Dinov2Model(
        Dinov2Config(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, patch_size=14)
    ).eval()
    processor = BitImageProcessorPil(
        size={"shortest_edge": 256}, crop_size={"height": 224, "width": 224}, resample=3,
        image_mean=[0.485, 0.456, 0.406], image_std=[0.229, 0.224, 0.225],
    )  # fmt: skip
    images = renders(2, 0, 256)
    ours = dinov2_features(model, images)
    pictures = [
        Image.fromarray((255 * one).round().byte().permute(1, 2, 0).numpy()) for one in images
    ]
    values = processor(images=pictures, return_tensors="pt").pixel_values
    with torch.no_grad():
        theirs = model(values).last_hidden_state[:, 0]
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-3)


def test_a_run_reports_them_and_stops_on_a_grid(tmp_path):
    """A reward that wants every fourth column bright."""
    judged = {"judge": "jpeg", "judge_prompts": "animals", "judge_images": 8, "judge_every": 1}

    def stripes(images, prompts):
        return 100 * images[..., ::4].flatten(1).mean(1)

    settings = {"steps": 10, "learning_rate": 0.1, "lora_rank": 8, "grad_window": "1"}
    result, _ = run(
        tmp_path, reward=stripes, stop_on="grid:1e-4", height=32, width=32, **settings, **judged
    )
    report = json.loads((result.out / "report.json").read_text())
    found = report["judge"]["measures"]
    assert set(found["before"]) == {*measures.TONE, "grid"}
    last = result.metrics[-1]
    assert last["measures"]["clipped"] == found["after"]["clipped"]
    card = (result.out / "lora" / "README.md").read_text()
    assert "| mean saturation (HSV) |" in card
    assert "trained minus base" in card
    if result.steps < 10:
        assert last["grid"]["low"] > 0
        assert "a grid of" in report["warnings"][-1]
        assert "a grid of" in card


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stop_on": "grid:0.01"}, "needs a judge"),
        ({"stop_on": "grid", "judge": "jpeg"}, "stop_on is 'grid'; it must be grid:NUMBER"),
        ({"stop_on": "vendi:1", "judge": "jpeg"}, "it must be grid:NUMBER"),
        ({"stop_on": "grid:-1", "judge": "jpeg"}, "it must be grid:NUMBER"),
    ],
)
def test_settings_that_do_not_fit(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        small_config(tmp_path, **changes)
