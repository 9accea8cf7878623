"""Checkpoints: resuming bit for bit, torn ones, other runs' ones."""

import errno
import json
import logging
import shutil

import pytest
import torch
from safetensors.torch import load_file
from tiny import build
from train_helpers import LORA, brightness, small_config

from align.alignprop.train import train
from align.runs.folder import read_metrics
from align.training import checkpoints
from align.training.checkpoints import list_checkpoints, read_checkpoint

RICH = {
    "steps": 4,
    "checkpoint_every": 1,
    "keep_checkpoints": 3,
    "eta": 0.5,
    "grad_window": "random",
    "ema_decay": 0.9,
    "normalize_rewards": True,
    "lr_schedule": "cosine",
    "warmup_steps": 1,
    "learning_rate": 0.01,
    "judge": "jpeg",
    "judge_prompts": "animals",
    "judge_images": 4,
    "judge_every": 2,
}


def go(folder, on_step=None, function=brightness, **changes):
    folder.mkdir(parents=True, exist_ok=True)
    config = small_config(folder, **RICH | changes)
    return train(config, reward=function, pipe=build("sd"), on_step=on_step)


def random_reward(images, prompts):
    """Uses the global generator, as a user's augmentations may."""
    return brightness(images + 0.01 * torch.randn(images.shape), prompts)


def files(folder):
    """Every number that a run leaves: LoRAs, optimizer, records without their times."""
    found = {}
    for path in sorted(folder.rglob("*.safetensors")):
        name = str(path.relative_to(folder))
        found |= {f"{name}/{key}": value for key, value in load_file(path).items()}
    last = list_checkpoints(folder)[0]
    optimizer = torch.load(last / "optimizer.pt", weights_only=True)
    for index, state in optimizer["state"].items():
        found |= {f"{index}/{key}": torch.as_tensor(value) for key, value in state.items()}
    records = read_metrics(folder)
    return found, [{k: v for k, v in r.items() if k != "seconds"} for r in records]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    go(folder, function=random_reward)
    return folder / "run"


def assert_same(one, two):
    (first, records), (second, others) = files(one), files(two)
    assert records == others
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_resumed_at_two_of_four_equals_uninterrupted(tmp_path, uninterrupted):
    go(tmp_path, on_step=lambda record: record["step"] == 2, function=random_reward)
    assert list_checkpoints(tmp_path / "run")[0].name == "step-2"
    resumed = go(tmp_path, function=random_reward, out=None, resume=str(tmp_path / "run"))
    assert resumed.steps == 4
    assert_same(tmp_path / "run", uninterrupted)


def test_the_last_ones_are_kept(uninterrupted):
    names = [path.name for path in list_checkpoints(uninterrupted)]
    assert names == ["step-4", "step-3", "step-2"]
    assert not list((uninterrupted / "checkpoints").glob(".*"))


@pytest.mark.parametrize("damage", ["cut", "gone", "no json", "half json"])
def test_a_torn_checkpoint_falls_back_to_the_one_before(tmp_path, uninterrupted, damage, caplog):
    run = tmp_path / "run"
    shutil.copytree(uninterrupted, run)
    shutil.copy(uninterrupted.parent / "prompts.txt", tmp_path)
    newest = run / "checkpoints" / "step-4"
    if damage == "cut":
        whole = (newest / "lora.safetensors").read_bytes()
        (newest / "lora.safetensors").write_bytes(whole[: len(whole) // 2])
    elif damage == "gone":
        (newest / "optimizer.pt").unlink()
    elif damage == "no json":
        (newest / "checkpoint.json").unlink()
    else:
        (newest / "checkpoint.json").write_text('{"step": 4, "sha')
    with caplog.at_level(logging.WARNING):
        result = go(tmp_path, function=random_reward, out=None, resume=str(run))
    assert "step-4 is damaged" in caplog.text
    assert result.steps == 4
    assert read_checkpoint(newest) is not None
    assert_same(run, uninterrupted)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"function": brightness}, r"was trained with reward 'random_reward', not 'brightness'"),
        ({"function": "jpeg"}, r"was trained with reward 'random_reward', not 'jpeg'"),
        ({"model": "other"}, r"was trained with model 'tiny', not 'other'"),
        ({"lora_rank": 8}, r"was trained with lora_rank 2, not 8"),
        ({"judge": "jpeg-complexity"}, r"was judged with judge 'jpeg', not 'jpeg-complexity'"),
        ({"judge_images": 8}, r"was judged with judge_images 4, not 8"),
    ],
)
def test_another_run_is_refused(uninterrupted, tmp_path, changes, message):
    settings = {"function": random_reward, "out": None, "resume": str(uninterrupted)}
    with pytest.raises(ValueError, match=message):
        go(tmp_path, **settings | changes)


def copied(uninterrupted, tmp_path):
    """The settings that go on with a copy of the uninterrupted run."""
    shutil.copytree(uninterrupted, tmp_path / "run")
    same = {"function": random_reward, "prompts": str(uninterrupted.parent / "prompts.txt")}
    return same | {"out": None, "resume": str(tmp_path / "run")}


def test_other_settings_are_told(uninterrupted, tmp_path, caplog):
    settings = copied(uninterrupted, tmp_path)
    with caplog.at_level(logging.WARNING):
        go(tmp_path, **settings)
        assert "other settings" not in caplog.text
        go(tmp_path, seed=1, learning_rate=0.5, **settings)
    said = "resumed with other settings (learning_rate 0.01, now 0.5, seed 0, now 1)"
    assert said in caplog.text


def test_every_setting_that_changes_results_is_told(tmp_path, caplog):
    go(tmp_path, steps=1)
    changes = {
        "negative_prompt": "a dog", "height": 24, "width": 24, "detach_uncond": True,
        "guidance_scale": 3.0, "ema_decay": 0.5, "dtype": "float32", "vae_tiling": True,
    }  # fmt: skip
    harmless = {"checkpoint_every": 2, "sample_every": 7, "micro_batch_size": 1, "offload": True}
    again = {"out": None, "resume": str(tmp_path / "run"), "steps": 1}
    with caplog.at_level(logging.WARNING):
        go(tmp_path, **changes, **harmless, **again)
    (said,) = [line for line in caplog.text.splitlines() if "other settings" in line]
    for name in changes:
        assert f"{name} " in said
    for name in harmless:
        assert name not in said


def test_prompts_are_known_by_what_the_file_holds(tmp_path, caplog):
    go(tmp_path, steps=1)
    again = {"out": None, "resume": str(tmp_path / "run"), "steps": 1}
    moved = tmp_path / "moved.txt"
    shutil.copy(tmp_path / "prompts.txt", moved)
    with caplog.at_level(logging.WARNING):
        go(tmp_path, **again, prompts=str(moved))
        assert "other settings" not in caplog.text
        moved.write_text("another")
        go(tmp_path, **again, prompts=str(moved))
    assert "resumed with other settings (prompts holds other things)" in caplog.text


def test_a_judge_by_other_prompts_is_refused(tmp_path):
    held_out = tmp_path / "held_out.txt"
    held_out.write_text("one\ntwo\n")
    settings = {"steps": 1, "judge_prompts": str(held_out)}
    go(tmp_path, **settings)
    held_out.write_text("one\nthree\n")
    with pytest.raises(ValueError, match="was judged by other prompts than"):
        go(tmp_path, **settings, out=None, resume=str(tmp_path / "run"))


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_a_longer_run_has_the_learning_rates_of_one_that_was_so_from_the_start(tmp_path, schedule):
    settings = {"lr_schedule": schedule, "warmup_steps": 0, "judge": None, "judge_prompts": None}
    long = go(tmp_path / "long", **settings, steps=6).metrics
    go(tmp_path / "cut", **settings, steps=3)
    again = {"out": None, "resume": str(tmp_path / "cut" / "run"), "steps": 6}
    cut = go(tmp_path / "cut", **settings, **again).metrics
    assert [record["lr"] for record in cut[3:]] == [record["lr"] for record in long[3:]]
    assert cut[3]["lr"] == pytest.approx(0.01 / 2)  # both schedules at half


def test_run_json_says_what_ran(tmp_path):
    go(tmp_path, steps=2, lr_schedule="constant", warmup_steps=0)
    again = {"out": None, "resume": str(tmp_path / "run")}
    changes = {"learning_rate": 1e-5, "weight_decay": 0.3, "lr_schedule": "constant"}
    records = go(tmp_path, **again, **changes, warmup_steps=0, steps=3).metrics
    described = json.loads((tmp_path / "run" / "run.json").read_text())
    assert [record["lr"] for record in records] == [0.01, 0.01, 1e-5]
    assert described["config"]["learning_rate"] == records[-1]["lr"]
    (part,) = described["earlier"]
    assert part["until_step"] == 2
    assert part["config"] == {"learning_rate": 0.01, "weight_decay": 1e-4, "steps": 2}
    optimizer = torch.load(
        list_checkpoints(tmp_path / "run")[0] / "optimizer.pt", weights_only=True
    )
    assert optimizer["param_groups"][0]["weight_decay"] == 0.3


def test_an_average_that_begins_late_begins_at_the_present_weights(tmp_path):
    go(tmp_path, steps=2, ema_decay=None)
    again = {"out": None, "resume": str(tmp_path / "run")}
    go(tmp_path, **again, steps=2, ema_decay=0.9)
    average, last = (load_file(tmp_path / "run" / name / LORA) for name in ("lora-ema", "lora"))
    assert all(torch.equal(average[name], last[name]) for name in last)


def test_a_torn_checkpoint_does_not_outlive_whole_ones(uninterrupted, tmp_path):
    settings = copied(uninterrupted, tmp_path)
    checkpoints_of_run = tmp_path / "run" / "checkpoints"
    for name in ("step-3", "step-4"):
        (checkpoints_of_run / name / "optimizer.pt").unlink()
    go(tmp_path, **settings, keep_checkpoints=1, on_step=lambda record: record["step"] == 3)
    assert [path.name for path in checkpoints_of_run.iterdir()] == ["step-3"]
    assert read_checkpoint(checkpoints_of_run / "step-3") is not None


def test_a_run_without_a_whole_checkpoint_is_not_begun_again(uninterrupted, tmp_path):
    settings = copied(uninterrupted, tmp_path)
    for folder in list_checkpoints(tmp_path / "run"):
        (folder / "checkpoint.json").unlink()
    records = read_metrics(tmp_path / "run")
    with pytest.raises(ValueError, match=r"no checkpoint of .* is whole; start over"):
        go(tmp_path, **settings)
    assert read_metrics(tmp_path / "run") == records


def test_a_run_that_lost_its_patience_makes_no_further_update(tmp_path):
    settings = {"judge": "jpeg-complexity", "judge_every": 1, "patience": 1, "steps": 6}
    done = go(tmp_path, **settings, learning_rate=0.05).steps
    assert 0 < done < 6
    again = go(tmp_path, **settings, learning_rate=0.05, out=None, resume=str(tmp_path / "run"))
    assert again.steps == done


def test_without_a_checkpoint_it_starts_at_zero(tmp_path):
    result = go(tmp_path, steps=1, out=None, resume=str(tmp_path / "run"))
    assert result.steps == 1


def test_a_finished_run_resumes_to_itself(tmp_path, uninterrupted):
    result = go(tmp_path, **copied(uninterrupted, tmp_path))
    assert result.steps == 4
    assert_same(tmp_path / "run", uninterrupted)


def test_a_full_disk_leaves_the_earlier_checkpoints(tmp_path, monkeypatch):
    real, calls = checkpoints.save_file, []

    def save_file(tensors, path):
        calls.append(path)
        if len(calls) >= 3:
            path.write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        real(tensors, path)

    monkeypatch.setattr(checkpoints, "save_file", save_file)
    with pytest.raises(OSError, match=r"the disk is full: .*step-3 was not written"):
        go(tmp_path, judge=None, judge_prompts=None)
    names = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert names == ["step-1", "step-2"]
    monkeypatch.undo()
    assert (
        go(tmp_path, judge=None, judge_prompts=None, out=None, resume=str(tmp_path / "run")).steps
        == 4
    )
