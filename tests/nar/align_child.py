"""`align_child.py run FOLDER METHOD` aligns once, under torchrun with all its processes.

`align_child.py kill FOLDER STEPS`, for both methods and precisions: aligns
FOLDER/METHOD-PRECISION/whole in one go and .../killed with a SIGKILL after its first checkpoint,
resumed to the end.
Prints whether the kills came in time."""

import itertools
import os
import signal
import sys
import time
from pathlib import Path

import torch
from align_helpers import run

from align.cli import leave

SETTINGS = {"checkpoint_every": 1, "learning_rate": 0.01, "warmup_steps": 2}


def fork(folder: Path, **changes) -> int:
    """Align in a child; this process never computes, so forking it is safe."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            run(folder, **SETTINGS | changes)
            status = 0
        finally:
            os._exit(status)
    return child


def killed(folder: Path, method: str, precision: str, steps: int) -> None:
    settings = {"method": method, "mixed_precision": precision, "steps": steps}
    assert os.waitpid(fork(folder / "whole", **settings), 0)[1] == 0
    child = fork(folder / "killed", **settings)
    while not list((folder / "killed/run/checkpoints").glob("step-[1-9]*")):
        time.sleep(0.001)
    os.kill(child, signal.SIGKILL)
    hit = os.waitpid(child, 0)[1] == signal.SIGKILL
    again = settings | {"out": None, "resume": str(folder / "killed/run")}
    assert os.waitpid(fork(folder / "killed", **again), 0)[1] == 0
    sys.stdout.write(f"{int(hit)}\n")


if __name__ == "__main__":
    torch.set_num_threads(1)
    if sys.argv[1] == "run":
        run(Path(sys.argv[2]), method=sys.argv[3], **SETTINGS)
        leave(0)
    else:
        for method, precision in itertools.product(("grpo", "dpo"), ("no", "bf16")):
            folder = Path(sys.argv[2]) / f"{method}-{precision}"
            killed(folder, method, precision, int(sys.argv[3]))
