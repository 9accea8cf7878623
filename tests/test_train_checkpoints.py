"""Checkpoints: resuming bit for bit, torn ones, other runs' ones."""

import errno
import logging
import shutil

import pytest
import torch
from safetensors.torch import load_file
from tiny import build
from train_helpers import brightness, small_config

from align.run import read_metrics
from align.train import train
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
    folder.mkdir(exist_ok=True)
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
    assert "the optimizer keeps its learning rate" in caplog.text


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
