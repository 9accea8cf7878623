"""Runs that go wrong: what stops them, what is saved, what is said."""

import os
import signal
import sys
import threading
from types import SimpleNamespace

import pytest
import torch
from tiny import build
from train_helpers import LORA, PROMPTS, brightness, run, small_config

from align.alignprop import memory
from align.alignprop.train import train
from align.cli import main
from align.runs.folder import read_metrics
from align.training import runs
from align.training.stopping import Diverged
from tests.nar.fit_helpers import nan_gradient


@pytest.fixture
def tiny_folder(tmp_path):
    """A tiny model's folder, as --model takes it."""
    build("sd").save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


class Faulty:
    """A reward that does something at its n-th call with gradient."""

    def __init__(self, call, fault):
        self.call, self.fault, self.calls = call, fault, 0

    def __call__(self, images, prompts):
        scores = brightness(images, prompts)
        if images.requires_grad:
            self.calls += 1
            if self.calls == self.call:
                return self.fault(scores)
        return scores


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_reward_that_is_no_number_stops_and_saves(tmp_path, value):
    with pytest.raises(Diverged, match=r"stopped at step 3: reward Faulty is (nan|inf); what was"):
        run(tmp_path, steps=5, reward=Faulty(3, lambda scores: scores * value))
    out = tmp_path / "run"
    assert (out / "checkpoints" / "step-2").is_dir()
    assert (out / "lora" / LORA).is_file()
    assert len((out / "metrics.jsonl").read_text().splitlines()) == 2


def test_a_gradient_that_is_no_number_stops_before_the_weights_change(tmp_path):
    with pytest.raises(Diverged, match=r"stopped at step 2: the gradient's norm is nan"):
        run(tmp_path, reward=Faulty(2, nan_gradient))
    assert (tmp_path / "run" / "checkpoints" / "step-1").is_dir()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_the_run_goes_on_from_there(tmp_path, number, tiny_folder, capsys):
    rewards = tmp_path / "rewards.py"
    rewards.write_text(
        "import os, pathlib\n"
        "def bright(images, prompts):\n"
        f"    mark = pathlib.Path({str(tmp_path / 'mark')!r})\n"
        "    if images.requires_grad:\n"
        "        mark.write_text((mark.read_text() if mark.exists() else '') + 'x')\n"
        "        if mark.read_text() == 'xx':\n"
        f"            os.kill(os.getpid(), {int(number)})\n"
        "    return images.mean((1, 2, 3))\n"
    )
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS))
    out = str(tmp_path / "run")
    arguments = ["train", "--model", tiny_folder, "--reward", f"{rewards}:bright", "--out", out]
    arguments += ["--prompts", str(tmp_path / "prompts.txt"), "--batch-size", "1", "--steps", "3"]
    arguments += ["--num-inference-steps", "2", "--tracker", "none", "--device", "cpu"]
    before = signal.getsignal(number)
    assert main(arguments) == 130
    assert signal.getsignal(number) is before
    assert os.listdir(tmp_path / "run" / "checkpoints") == ["step-1"]
    assert "align: interrupted" in capsys.readouterr().err
    assert main(["train", "--resume", out]) == 0
    assert [record["step"] for record in read_metrics(out)] == [1, 2, 3]
    assert "-> " in capsys.readouterr().out


def test_signals_are_left_alone_outside_the_main_thread(tmp_path):
    results = []
    thread = threading.Thread(target=lambda: results.append(run(tmp_path, steps=1)))
    thread.start()
    thread.join()
    assert results[0][0].steps == 1


def not_differentiable(images, prompts):
    return brightness(images, prompts)


not_differentiable.differentiable = False


@pytest.mark.parametrize(
    ("reward", "message"),
    [
        (lambda images, prompts: images.mean((1, 2, 3)) * 0, "the reward's gradient is zero"),
        (not_differentiable, "not_differentiable has no gradient to train on"),
        (lambda images, prompts: images.mean(), r"must return scores of shape \[8\]"),
        (lambda images, prompts: images.mean((1, 2, 3)).detach(), "without a gradient"),
        ("jpg", "unknown reward 'jpg': did you mean jpeg"),
        ("verifier", "'verifier' is a judge, not a training signal"),
    ],
)
def test_rewards_that_cannot_train(tmp_path, reward, message):
    with pytest.raises(ValueError, match=message):
        run(tmp_path, reward=reward)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"grad_window": "4"}, "grad_window is '4'; it must keep from 1 to 3 steps"),
        ({"grad_window": "tail"}, "grad_window is 'tail'; allowed are"),
        ({"prompts": None}, "--prompts is needed with tiny"),
        ({"prompts": "scene"}, "no prompt set or file 'scene'"),
        ({"prompts": "scenes-heldout-b"}, "scenes-heldout-b is kept for the final measurement"),
        ({"normalize_rewards": True, "reward": "product(jpeg,jpeg-complexity)"}, "is for sums"),
        ({"lora_targets": ("to_qq",)}, "no layer is called 'to_qq'"),
        ({"height": 15}, "height is 15"),
        ({"optimizer": "adamw8bit"}, "needs bitsandbytes"),
        ({"tracker": "wandb"}, "tracker is 'wandb', which is not installed"),
        ({"judge": "jpeg"}, "--judge-prompts is needed with --judge and tiny"),
        ({"judge": "jpeg", "judge_prompts": "scenes-heldout-b"}, "kept for the final measurement"),
        ({"judge": "jpg", "judge_prompts": "animals"}, "unknown reward 'jpg'"),
        ({"judge_prompts": "animals"}, "judge_prompts is 'animals', which needs a judge"),
        ({"patience": 3}, "patience is 3, which needs a judge"),
        ({"max_step_grad_norm": -1.0}, "max_step_grad_norm is -1.0"),
        ({"shard": True, "quantize": "8bit"}, "shard and quantize are both given"),
    ],
)
def test_wrong_settings(tmp_path, changes, message, monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)  # as where it is not installed
    with pytest.raises(ValueError, match=message):
        run(tmp_path, **changes)
    assert not (tmp_path / "run").exists()


def test_a_folder_in_use_is_refused(tmp_path):
    run(tmp_path, steps=1)
    with pytest.raises(ValueError, match="exists and is not empty"):
        run(tmp_path, steps=1)
    run(tmp_path, steps=1, overwrite=True)


def test_memory_errors_say_what_to_lower(tmp_path):
    def huge(scores):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")

    with pytest.raises(MemoryError, match="out of memory; lower --micro-batch-size"):
        run(tmp_path, reward=Faulty(1, huge))


def test_a_model_too_large_for_the_card_says_what_is_the_least(tmp_path, monkeypatch, tiny_folder):
    monkeypatch.setattr(memory, "memory_limit", lambda config: 1.0)
    config = small_config(tmp_path, model=tiny_folder, memory="12gb")
    with pytest.raises(MemoryError, match=r"does not fit 12gb: the smallest setting needs"):
        train(config, reward=brightness)


def test_a_constant_reward_is_refused_beside_a_distance_to_the_base(tmp_path):
    with pytest.raises(ValueError, match="the reward's gradient is zero"):
        run(tmp_path, reward=lambda images, prompts: images.mean((1, 2, 3)) * 0, kl_weight=0.1)


def test_an_upload_without_a_login_is_refused_before_the_training(tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "get_token", lambda: None)
    with pytest.raises(ValueError, match="nobody is logged in: run `hf auth login`"):
        run(tmp_path, push_to_hub="me/mine")
    assert not (tmp_path / "run").exists()


def test_an_upload_is_the_whole_lora_folder(tmp_path, monkeypatch):
    sent = []

    class Hub:
        def create_repo(self, name, exist_ok):
            return SimpleNamespace(repo_id=name)

        def upload_folder(self, repo_id, folder_path):
            card = (folder_path / "README.md").read_text()
            sent.append((repo_id, sorted(os.listdir(folder_path)), card))

    monkeypatch.setattr(runs, "get_token", lambda: "token")
    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    run(tmp_path, push_to_hub="me/mine")
    ((name, files, card),) = sent
    assert name == "me/mine"
    assert files == ["README.md", "after.png", "before.png", LORA]
    assert 'pipe.load_lora_weights("me/mine")' in card


def test_an_upload_that_fails_says_where_the_lora_is(tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "get_token", lambda: "token")
    with pytest.raises(ValueError, match=r"was not uploaded to not/a/name .* it is on this disk"):
        run(tmp_path, push_to_hub="not/a/name")
    assert (tmp_path / "run" / "lora" / LORA).is_file()
    assert (tmp_path / "run" / "report.json").is_file()
