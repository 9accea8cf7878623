"""`align train --self-check` finds a sound model sound and a wrong gradient wrong."""

import dataclasses
import re

import pytest
import torch
from tiny import build
from train_helpers import brightness, small_config

from align.cli import main
from align.training.self_check import findings_text, self_check


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
