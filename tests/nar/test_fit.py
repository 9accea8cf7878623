"""The loop of `align nar tokenizer`, `train` and `convert`: faults, signals, resuming."""

import hashlib
import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from align.config.nar import NarTokenizerConfig
from align.nar.training.fit import open_processes, train_on_pictures
from align.nar.training.tokenizer import train_tokenizer
from align.runs.folder import read_metrics
from align.training.checkpoints import read_checkpoint
from align.training.stopping import Diverged
from tests.nar.fit_helpers import linear_run, nan_gradient

CHILD = Path(__file__).with_name("fit_child.py")


def config(folder, **changes):
    settings = {
        "steps": 4, "batch_size": 2, "checkpoint_every": 1, "keep_checkpoints": 9,
        "mixed_precision": "no", "device": "cpu", "out": str(folder),
    }  # fmt: skip
    return NarTokenizerConfig(**settings | changes)


def fitted(folder, fault=lambda loss, update: loss, schedule="cosine", **changes):
    """A run of a linear layer, whose loss `fault` may change."""
    settings = config(folder, **changes)
    accelerator = open_processes(settings)
    run = linear_run(settings, folder, accelerator, schedule=schedule, warmup=1)

    def loss_fn(model, update, indices):
        inputs = torch.tensor([[1.0, i, i * i] for i in indices]) / 9
        return fault(model(inputs).square().mean(), update), {}

    train_on_pictures(run, loss_fn, 8)
    return run


def weights(folder, step):
    return load_file(folder / f"checkpoints/step-{step}/model.safetensors")


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (lambda loss: loss * float("nan"), "the loss is nan"),
        (nan_gradient, "the gradient's norm is nan"),
    ],
)
def test_what_is_no_number_ends_before_the_weights_change(tmp_path, fault, said):
    run = tmp_path / "run"
    with pytest.raises(Diverged, match=rf"stopped at step 3: {said}; what was reached at step 2"):
        fitted(run, lambda loss, update: fault(loss) if update == 2 else loss)
    whole = fitted(tmp_path / "whole", steps=4)
    assert whole.done == 4
    for name, tensor in weights(run, 2).items():
        assert torch.equal(tensor, weights(tmp_path / "whole", 2)[name])
    assert [record["step"] for record in read_metrics(run)] == [1, 2]
    fitted(run, out=None, resume=str(run))  # and it goes on from there
    for name, tensor in weights(run, 4).items():
        assert torch.equal(tensor, weights(tmp_path / "whole", 4)[name])


def test_a_codebook_that_learned_in_a_lost_update_is_put_back(tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    for number in range(6):
        Image.new("RGB", (8, 8), (40 * number, 0, 90)).save(data / f"{number}.png")
    settings = {
        "data": str(data), "image_size": 8, "patch": 2, "width": 4, "quantizer": "vq",
        "codebook_size": 8, "threads": 1, "ema_decay": 0.0,
    }  # fmt: skip
    train_tokenizer(config(tmp_path / "whole", **settings, steps=2))

    def poison(module, inputs):
        if module.training and len(read_metrics(tmp_path / "run")) == 1:
            return (inputs[0] * float("nan"),)
        return None

    from align.nar.training import tokenizer as commands

    make = commands.make_tokenizer

    def poisoned(made):
        tokenizer = make(made)
        tokenizer.register_forward_pre_hook(poison)
        return tokenizer

    commands.make_tokenizer = poisoned
    try:
        with pytest.raises(Diverged, match="stopped at step 2: the loss is nan"):
            train_tokenizer(config(tmp_path / "run", **settings, steps=2))
    finally:
        commands.make_tokenizer = make
    saved, right = weights(tmp_path / "run", 1), weights(tmp_path / "whole", 1)
    assert any("embed" in name or "codebook" in name for name in saved)
    for name, tensor in saved.items():
        assert torch.equal(tensor, right[name]), name


def test_two_processes_end_together(tmp_path):
    data = tmp_path / "data"
    for name in ("blue", "red"):
        (data / name).mkdir(parents=True)
        for number in range(4):
            Image.new("RGB", (8, 8), (60 * number, 0, 90)).save(data / name / f"{number}.png")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    root = tmp_path / "runs"
    root.mkdir()
    result = subprocess.run(
        [sys.executable, str(CHILD), str(root), str(data)],
        env=environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-3000:]
    outcomes = json.loads(result.stdout.splitlines()[-1])
    said = {
        "loss": "Diverged: stopped at step 3: ",
        "gradient": "Diverged: stopped at step 3: the gradient's norm is nan",
        "pixels": "Diverged: stopped at step 3: ",
        "tokenizer": "Interrupted",
        "train": "Interrupted",
    }
    for name, start in said.items():
        for outcome, seconds in outcomes[name]:
            assert outcome.startswith(start), (name, outcomes[name])
            assert seconds < 10, (name, outcomes[name])
        steps = [record["step"] for record in read_metrics(root / name)]
        newest = root / name / f"checkpoints/step-{steps[-1]}"
        assert steps == [1, 2] or (start == "Interrupted" and len(steps) < 2000)
        assert read_checkpoint(newest) is not None
        tensors = load_file(newest / "model.safetensors").values()
        assert all(tensor.isfinite().all() for tensor in tensors)


@pytest.mark.parametrize("damage", ["cut", "gone", "half json"])
def test_a_torn_checkpoint_falls_back_to_the_one_before(tmp_path, damage, caplog):
    run, whole = tmp_path / "run", tmp_path / "whole"
    fitted(whole)
    fitted(run)
    newest = run / "checkpoints/step-4"
    if damage == "cut":
        content = (newest / "model.safetensors").read_bytes()
        (newest / "model.safetensors").write_bytes(content[: len(content) // 2])
    elif damage == "gone":
        (newest / "optimizer.pt").unlink()
    else:
        (newest / "checkpoint.json").write_text('{"step": 4, "sha')
    with caplog.at_level(logging.WARNING):
        fitted(run, out=None, resume=str(run))
    assert "step-4 is damaged" in caplog.text
    assert "other settings" not in caplog.text
    assert read_checkpoint(newest) is not None
    for name, tensor in weights(run, 4).items():
        assert torch.equal(tensor, weights(whole, 4)[name])


def test_another_network_or_tokenizer_is_refused_and_other_settings_are_told(tmp_path, caplog):
    run = tmp_path / "run"
    fitted(run, steps=2)
    again = {"out": None, "resume": str(run)}
    with pytest.raises(ValueError, match=r"run was trained with patch 4, not 8"):
        fitted(run, patch=8, **again)
    with caplog.at_level(logging.WARNING):
        fitted(run, steps=2, **again)
        assert "other settings" not in caplog.text
        fitted(run, steps=3, seed=1, learning_rate=0.5, batch_size=4, **again)
    said = (
        "resumed with other settings (batch_size 2, now 4, steps 2, now 3, "
        "learning_rate 0.002, now 0.5, seed 0, now 1)"
    )
    assert said in caplog.text
    described = json.loads((run / "run.json").read_text())
    rates = [record["lr"] for record in read_metrics(run)]
    assert described["config"]["learning_rate"] == 0.5
    assert rates[2] == pytest.approx(0.5 * (0.02 + 0.98 * 0.25))  # the cosine at 2 of 3
    part = described["earlier"][-1]
    assert part["until_step"] == 2
    assert part["config"]["learning_rate"] == 0.002


def test_a_longer_run_has_the_learning_rates_of_one_that_was_so_from_the_start(tmp_path):
    fitted(tmp_path / "long", steps=6)
    fitted(tmp_path / "cut", steps=3)
    fitted(tmp_path / "cut", steps=6, out=None, resume=str(tmp_path / "cut"))
    long, cut = ([r["lr"] for r in read_metrics(tmp_path / name)] for name in ("long", "cut"))
    assert cut[3:] == long[3:]


def test_a_checkpoint_of_the_former_form_is_resumed(tmp_path):
    """It had `stepped` for the schedule, and beside the average how many steps that had seen."""
    fitted(tmp_path / "whole")
    run = tmp_path / "run"
    with pytest.raises(Diverged):
        fitted(run, lambda loss, update: loss * float("nan") if update == 2 else loss)
    newest = run / "checkpoints/step-2"
    state = json.loads((newest / "checkpoint.json").read_text())
    taken = state.pop("schedule")["last_epoch"]
    for name in ("ema", "reward_moments", "course"):
        del state[name]
    file = newest / "average.safetensors"
    save_file(load_file(file) | {"n_averaged": torch.tensor(taken)}, file)
    state["sha256"][file.name] = hashlib.sha256(file.read_bytes()).hexdigest()
    (newest / "checkpoint.json").write_text(json.dumps(state | {"stepped": taken}))
    fitted(run, out=None, resume=str(run))
    for name in ("model", "average"):
        one, other = (
            load_file(folder / f"checkpoints/step-4/{name}.safetensors")
            for folder in (run, tmp_path / "whole")
        )
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one)
