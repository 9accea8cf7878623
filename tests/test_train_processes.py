"""Training in several processes, and killed in the middle."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from train_child import run
from train_helpers import PROMPTS

from align.models import processes
from align.runs.folder import read_metrics
from align.training.checkpoints import list_checkpoints

CHILD = str(Path(__file__).with_name("train_child.py"))
JUDGED = {"judge": "jpeg", "judge_prompts": "animals", "judge_images": 4, "judge_every": 2}
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "1", "PYTHONWARNINGS": "ignore"}


def start(*command):
    environment = os.environ | ENVIRONMENT
    result = subprocess.run(
        [sys.executable, *command], env=environment, capture_output=True, text=True, timeout=600
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout


def flat(record, name=""):
    """The numbers of nested dictionaries, by their path."""
    if not isinstance(record, dict):
        return {} if record is None else {name: record}
    return {k: v for key in record for k, v in flat(record[key], f"{name}/{key}").items()}


def lora(folder):
    return load_file(list_checkpoints(folder / "run")[0] / "lora.safetensors")


NFT = {"method": "nft", "group_size": 2, "pair_timesteps": 2, "old_decay": 0.5, "eta": 0.0}
GRPO = {"method": "grpo", "group_size": 2, "eta": 0.0, "grad_window": "sparse:1"}
GROUPS = {"method": "dpo", "batch_size": 8, "group_size": 4, "micro_batch_size": 4}
GROUPS |= {"reward": "rank(jpeg)", "normalize_rewards": False}


@pytest.mark.parametrize(
    "changes",
    [
        JUDGED,
        JUDGED | {"shard": True, "grad_window": "random"},
        JUDGED | NFT,
        JUDGED | GRPO,
        JUDGED | GROUPS,
    ],
    ids=["ddp", "fsdp", "nft", "grpo", "groups"],
)
def test_two_processes_equal_one(tmp_path, changes):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "prompts.txt").write_text("\n".join(PROMPTS))
    run(tmp_path / "one", **changes | {"shard": False})
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    start(*torchrun, CHILD, "run", str(tmp_path / "two"), json.dumps(changes))
    one, two = lora(tmp_path / "one"), lora(tmp_path / "two")
    assert one.keys() == two.keys()
    for name, weight in one.items():
        assert weight.dtype == torch.float64
        torch.testing.assert_close(two[name], weight, atol=1e-6, rtol=0)
    assert max(weight.abs().max() for weight in one.values()) > 1e-2
    judged = [
        json.loads((tmp_path / name / "run" / "report.json").read_text())["judge"]
        for name in ("one", "two")
    ]
    assert flat(judged[0]) == pytest.approx(flat(judged[1]), rel=1e-5, abs=1e-5)
    rewards = [
        [r["reward"] for r in read_metrics(tmp_path / name / "run")] for name in ("one", "two")
    ]
    assert rewards[0] == pytest.approx(rewards[1], rel=1e-5)


@pytest.mark.parametrize(("steps", "kills"), [(4, 2), pytest.param(30, 20, marks=pytest.mark.slow)])
def test_killed_and_resumed_equals_uninterrupted(tmp_path, steps, kills):
    hits = int(start(CHILD, "kill", str(tmp_path), str(steps), str(kills)).split()[-1])
    assert hits >= kills // 2
    whole, killed = lora(tmp_path / "whole"), lora(tmp_path / "killed")
    assert list_checkpoints(tmp_path / "killed" / "run")[0].name == f"step-{steps}"
    assert whole.keys() == killed.keys()
    assert all(torch.equal(whole[name], killed[name]) for name in whole)


@pytest.mark.parametrize(
    ("device", "rank", "own"),
    [
        (None, "1", "cuda:1"),
        ("cuda", "2", "cuda:0"),
        ("cuda:0", "1", "cuda:0"),
        ("cpu", "1", "cpu"),
    ],
)
def test_each_process_has_its_own_card(monkeypatch, device, rank, own):
    monkeypatch.setattr(processes, "best_device", lambda: "cuda")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_RANK", rank)
    assert processes.own_device(device) == own
