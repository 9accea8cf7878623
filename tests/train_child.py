"""A small training run as a process of its own, for the tests that need processes.

`train_child.py run FOLDER SETTINGS` trains once with settings in JSON (under torchrun: with all
its processes).
`train_child.py kill FOLDER STEPS KILLS` trains FOLDER/whole, then FOLDER/killed, which is killed
with SIGKILL at random moments and resumed until it is done. Prints how many kills came in time.
"""

import faulthandler
import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch
from tiny import build
from train_helpers import brightness, small_config

from align.alignprop.train import train
from align.cli import leave
from align.models.processes import GROUPS


def run(folder: Path, **changes) -> None:
    settings = {"steps": 3, "batch_size": 4, "grad_window": "random-per-sample", "eta": 0.5}
    settings |= {"kl_weight": 0.1, "learning_rate": 0.01, "normalize_rewards": True}
    config = small_config(folder, **settings | changes)
    reward = None if "reward" in changes else brightness
    train(config, reward=reward, pipe=build("sd").to(torch.float64))


def fork(folder: Path, **changes) -> int:
    """Train in a child; this process never computes, so forking it is safe."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            run(folder, **changes)
            status = 0
        finally:
            os._exit(status)
    return child


def wait_for_updates(run: Path, count: int) -> None:
    """Wait until the run has logged this many updates."""
    metrics = run / "metrics.jsonl"
    while count and not (metrics.exists() and metrics.read_text().count("\n") >= count):
        time.sleep(0.005)


def killed(folder: Path, steps: int, kills: int) -> None:
    for name in ("whole", "killed"):
        (folder / name).mkdir(parents=True)
    settings = {"steps": steps, "checkpoint_every": 1, "ema_decay": 0.9}
    started = time.monotonic()
    assert os.waitpid(fork(folder / "whole", **settings), 0)[1] == 0
    a_step, hits, moments = (time.monotonic() - started) / steps, 0, random.Random(0)
    again = settings | {"out": None, "resume": str(folder / "killed" / "run")}
    for number in range(kills):
        child = fork(folder / "killed", **again)
        wait_for_updates(folder / "killed" / "run", (steps - 1) * number // kills)
        time.sleep(moments.uniform(0, 1) * a_step)
        os.kill(child, signal.SIGKILL)
        hits += os.waitpid(child, 0)[1] == signal.SIGKILL
    assert os.waitpid(fork(folder / "killed", **again), 0)[1] == 0
    sys.stdout.write(f"{hits}\n")


if __name__ == "__main__":
    torch.set_num_threads(1)
    if sys.argv[1] == "run":
        faulthandler.dump_traceback_later(300, exit=True)  # where it hangs, if it does
        run(Path(sys.argv[2]), **json.loads(sys.argv[3]))
        assert len(GROUPS) == (os.environ.get("WORLD_SIZE", "1") != "1")  # kept, or it may hang
        leave(0)
    else:
        killed(Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
