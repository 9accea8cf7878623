"""`align train --self-check` finds a sound model sound and a wrong gradient wrong."""

import dataclasses
import re

import pytest
import torch
from tiny import build
from train_helpers import brightness, small_config

import align
from align.alignprop.self_check import findings_text, self_check
from align.cli import main

NEWER = ["z-image", "qwen-image"]  # whose own default size is a large one


class Doubled(torch.autograd.Function):
    """The identity, with twice its gradient."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return 2 * grad


def test_a_sound_model_passes_and_nothing_is_written(tmp_path):
    config = small_config(tmp_path, self_check=True)
    findings = self_check(config, reward=brightness, pipe=build("sd"))
    assert [finding.name for finding in findings] == ["parity", "gradient", "update"]
    assert all(finding.passed for finding in findings), findings_text(findings)
    assert "one update of 2 images (last 3 of 3) peaks at" in findings[2].text
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["lcm", "pixart-sigma", "sd3", "flux-dev", "sana-sprint", *NEWER])
def test_sound_models_of_other_families_pass(tmp_path, name):
    size = {"height": 32, "width": 32} if name in ("sana-sprint", *NEWER) else {}
    findings = self_check(small_config(tmp_path, **size), reward=brightness, pipe=build(name))
    assert all(finding.passed for finding in findings), findings_text(findings)


def test_half_precision_says_where_it_cannot_tell(tmp_path):
    pipe = build("sd").to(torch.bfloat16)
    parity, gradient, _ = self_check(small_config(tmp_path), reward=brightness, pipe=pipe)
    assert parity.passed
    assert "<= 0.03" in parity.text
    assert gradient.passed
    assert "half precision is too coarse to check it" in gradient.text


def test_the_pipeline_is_given_back_as_it_was(tmp_path):
    pipe = build("sd")
    before = {name: p.clone() for name, p in pipe.unet.named_parameters()}
    settings = {"cache_embeddings": True, "normalize_rewards": True}
    assert all(f.passed for f in self_check(small_config(tmp_path, **settings), reward=brightness,
                                            pipe=pipe))  # fmt: skip
    after = dict(pipe.unet.named_parameters())
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert pipe.text_encoder is not None
    align.train(small_config(tmp_path, steps=1), reward=brightness, pipe=pipe)


def test_what_is_checked_is_the_plan_for_the_card(tmp_path, monkeypatch):
    seen = []

    def planned(config, reward):
        seen.append(reward.differentiable)
        return dataclasses.replace(config, batch_size=4), None

    monkeypatch.setattr("align.alignprop.self_check.plan", planned)
    build("sd").save_pretrained(tmp_path / "model")
    findings = self_check(
        small_config(tmp_path, model=str(tmp_path / "model"), memory="12gb"), reward=brightness
    )
    assert seen == [True]
    assert "one update of 4 images" in findings[2].text


def test_a_wrong_gradient_fails(tmp_path):
    findings = self_check(
        small_config(tmp_path),
        reward=lambda images, prompts: Doubled.apply(brightness(images, prompts)),
        pipe=build("sd"),
    )
    assert [finding.passed for finding in findings] == [True, False, True]
    share = float(re.search(r"([\d.]+)% off", findings[1].text)[1])
    assert share == pytest.approx(50, abs=2)


def test_on_the_command_line(tmp_path, capsys):
    build("sd").save_pretrained(tmp_path / "model")
    config = dataclasses.asdict(small_config(tmp_path))
    arguments = ["train", "--self-check", "--model", str(tmp_path / "model"), "--reward", "jpeg"]
    arguments += ["--prompts", config["prompts"], "--batch-size", "1", "--device", "cpu"]
    assert main([*arguments, "--num-inference-steps", "2"]) == 0
    assert capsys.readouterr().out.count("ok  ") == 3
