"""What a finished run says of itself is of the weights that it saved, by their real names."""

import json

import pytest
from tiny import build
from train_helpers import brightness, run, small_config

from align.alignprop.train import train

JUDGED = {"judge": "jpeg", "judge_prompts": "animals", "judge_images": 4}


def report_of(folder):
    return json.loads((folder / "report.json").read_text())


def test_the_judgment_is_of_the_last_weights_wherever_a_run_ends(tmp_path):
    for every in (1, 10):
        (tmp_path / f"{every}").mkdir()
        run(
            tmp_path / f"{every}", steps=4, judge_every=every, learning_rate=0.05, **JUDGED,
            on_step=lambda record: record["step"] == 2,
        )  # fmt: skip
    seldom, often = (report_of(tmp_path / f"{every}" / "run") for every in (10, 1))
    assert seldom["judge"] == often["judge"]
    assert seldom["judge"]["after"] != seldom["judge"]["before"]


@pytest.mark.parametrize(
    ("reward", "name"),
    [(brightness, "brightness"), ("jpeg=2", "jpeg=2"), (None, "jpeg")],
)
def test_a_reward_that_stands_in_is_named(tmp_path, reward, name):
    train(small_config(tmp_path, steps=1), reward=reward, pipe=build("sd"))
    folder = tmp_path / "run"
    assert json.loads((folder / "run.json").read_text())["config"]["reward"] == name
    assert f"# A LoRA that raises {name}\n" in (folder / "lora" / "README.md").read_text()


def test_a_pipeline_that_stands_in_is_named(tmp_path):
    config = small_config(tmp_path, steps=1, model="embedded/scenes")
    train(config, reward=brightness, pipe=build("sd"))
    card = (tmp_path / "run" / "lora" / "README.md").read_text()
    assert "Trained from StableDiffusionPipeline with AlignProp" in card
    assert "embedded/scenes" not in card
