"""The held-out judge: the best LoRA, early stopping, reward hacking, diversity."""

import json
from types import SimpleNamespace

import pytest
import torch
from train_helpers import LORA, run, small_config

from align.language.prompts import training_prompts
from align.rewards import load_reward
from align.scenes.dataset import prompt_set
from align.training.judge import (
    HeldOutJudge,
    _by_prompt,
    diversity,
    hacking_warning,
    judge_prompts,
    paired,
)


def test_the_judge_keeps_the_best_and_stops(tmp_path):
    """The judge likes dark images and the reward bright ones, so the base stays the best."""
    dark = tmp_path / "dark.py"
    dark.write_text("def dark(images, prompts):\n    return -images.mean((1, 2, 3))\n")
    result, _ = run(
        tmp_path,
        reward=lambda images, prompts: images.mean((1, 2, 3)),
        steps=6,
        learning_rate=0.05,
        judge=f"{dark}:dark",
        judge_prompts="animals",
        judge_images=8,
        judge_every=1,
        patience=2,
    )
    assert result.steps == 2
    assert [record["judge"] for record in result.metrics] == sorted(
        (record["judge"] for record in result.metrics), reverse=True
    )
    report = json.loads((result.out / "report.json").read_text())
    assert report["judge"]["best_step"] == 0
    assert (result.out / "lora-best" / LORA).is_file()
    assert "the judge fell by" in result.metrics[-1]["warning"]
    assert report["warnings"] == [result.metrics[-1]["warning"]]
    assert "may be being hacked" in (result.out / "lora" / "README.md").read_text()


def test_paired_differences():
    assert paired([1, 2, 3], [2, 3, 4]) == (1, 0)
    mean, error = paired([0, 0, 0, 0], [1, 2, 3, 4])
    assert mean == 2.5
    assert error == pytest.approx((5 / 3 / 4) ** 0.5)


def test_hacking_is_a_rise_with_a_fall():
    base = {"reward": [0, 0, 0], "judge": [1, 1, 1], "diversity": 0.2}
    good = {"reward": [1, 1, 2], "judge": [1, 2, 1], "diversity": 0.19}
    assert hacking_warning(base, good) is None
    worse = hacking_warning(base, good | {"judge": [0.5, 0.4, 0.5]})
    assert worse is not None
    assert "the judge fell by 0.533" in worse
    same = hacking_warning(base, good | {"diversity": 0.1})
    assert same is not None
    assert "diversity is 50% of the base" in same
    assert hacking_warning(base, base | {"judge": [0, 0, 0]}) is None


@pytest.mark.parametrize(
    ("rise", "fall", "share", "warned"),
    [
        (2.01, 2.01, 1.0, True),
        (1.99, 2.01, 1.0, False),
        (2.01, 1.99, 1.0, False),
        (2.01, 0.0, 0.79, True),
        (2.01, 0.0, 0.81, False),
        (1.99, 0.0, 0.79, False),
    ],
)
def test_hacking_begins_at_two_standard_errors_and_four_fifths(rise, fall, share, warned):
    """Two differences of x - 1 and x + 1 have the mean x and the standard error 1."""
    base = {"reward": [3, 5], "judge": [7, 4], "diversity": 0.5}
    now = {
        "reward": [3 + rise - 1, 5 + rise + 1],
        "judge": [7 - fall - 1, 4 - fall + 1],
        "diversity": 0.5 * share,
    }
    assert (hacking_warning(base, now) is not None) == warned


def test_the_other_half_is_refused_in_a_users_file_too(tmp_path, monkeypatch):
    # a set's categories play no part and take seconds
    monkeypatch.setattr(
        "align.scenes.dataset.prompt_categories", lambda prompts: [""] * len(prompts)
    )
    file = tmp_path / "judge.txt"
    config = small_config(tmp_path, judge="jpeg", judge_prompts=str(file))
    file.write_text("a cat\na dog")
    assert judge_prompts(config).prompts == ["a cat", "a dog"]
    kept = prompt_set("scenes-heldout-b")[-1]
    for text in (kept, f"{kept.upper()}. "):
        file.write_text(f"a cat\n{text}\na dog")
        with pytest.raises(ValueError, match="scenes-heldout-b is kept for the final measurement"):
            judge_prompts(config)
        with pytest.raises(ValueError, match="measurement, and 1 of these prompts are of it"):
            training_prompts(small_config(tmp_path, prompts=str(file)))


def test_diversity_is_zero_for_equal_images_and_blind_to_noise():
    image = torch.rand(1, 1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    assert diversity(image.expand(2, 3, -1, -1, -1)) == 0
    black_white = torch.stack([torch.zeros(3, 64, 64), torch.ones(3, 64, 64)])[None]
    assert diversity(black_white) == pytest.approx(1)
    noise = torch.rand(1, 2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    assert diversity(noise) < 0.15


@pytest.mark.usefixtures("unchecked")
def test_two_images_of_a_prompt_count_once(tmp_path):
    """The judge's error is that of prompts: both images of one move together."""
    config = small_config(tmp_path, judge="jpeg", judge_prompts="animals", judge_images=8)
    judge = HeldOutJudge(config)
    judge.judge = lambda images, prompts, metadata: torch.arange(8.0)
    session = SimpleNamespace(
        config=config,
        done=0,
        sampler=SimpleNamespace(draw=lambda prompts, seeds: torch.zeros(8, 3, 16, 16)),
        reward=load_reward("jpeg"),
        folder=tmp_path,
        periods=(4,),
    )
    assert judge.measure(session)["judge"] == [0.5, 2.5, 4.5, 6.5]
    generator, falls = torch.Generator().manual_seed(0), 0
    for _ in range(2000):
        moved = torch.randn(24, generator=generator).repeat_interleave(2)
        mean, error = paired([0.0] * 24, _by_prompt(moved))
        falls += mean < -2 * error
    assert falls / 2000 < 0.04  # 2.9 % by Student's t of 23; 0.08 where images count apart


def test_a_judge_that_is_trained_on_is_not_called_held_out(tmp_path):
    result, _ = run(
        tmp_path, reward="jpeg", judge="jpeg", judge_prompts="animals", judge_images=4, steps=1
    )
    report = json.loads((result.out / "report.json").read_text())
    assert report["judge"]["held_out"] is False
    assert "the judge jpeg is also what the LoRA is trained by" in report["warnings"][0]
    card = (result.out / "lora" / "README.md").read_text()
    assert "held-out judge" not in card
    assert "judge (also trained on)" in card
    assert "not held out" in card
