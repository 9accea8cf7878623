"""A run that several processes share: how it begins, the device of each, and the end."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from align.models.load import best_device

# The group of processes joins its threads as it is freed, and holds the interpreter's lock
# meanwhile; one of them may wait for that lock to free its last barrier (seen with gloo, torch
# 2.13: a process that had finished waited for ever). So it is not freed while the process lives.
GROUPS: list[Any] = []
SIGNALS = (signal.SIGINT, signal.SIGTERM)
# What torch needs to find the other processes; MPI has names of its own, which accelerate reads.
LAUNCHED_BY = ("RANK", "WORLD_SIZE", "MASTER_ADDR")
MPI = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")


def is_first() -> bool:
    """Whether this process is the only one, or the first of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) < 2 or os.environ.get("RANK", "0") == "0"


def own_device(device: str | None) -> str:
    """The device of this process: of several on a machine, each takes its own card of those it
    sees."""
    device = device or best_device()
    if device != "cuda" or "LOCAL_RANK" not in os.environ:
        return device
    return f"cuda:{int(os.environ['LOCAL_RANK']) % torch.cuda.device_count()}"


def open_accelerator(**settings: Any) -> Accelerator:
    """Accelerate's processes with these settings, whatever a run before in this process had.

    While it waits for the others, SIGINT and SIGTERM end the process at once: nothing is to be
    saved yet. ACCELERATE_DYNAMO_BACKEND compiles nothing here; `--compile` does.

    Raises ValueError where the environment says in part that there are several processes.
    """
    check_launch()
    AcceleratorState._reset_state(reset_partial_state=not torch.distributed.is_initialized())
    with _signals_that_end():
        return Accelerator(dynamo_backend="no", **settings)


def check_launch() -> None:
    """Raise ValueError where some of a launcher's variables are set and others missing."""
    several = "LOCAL_RANK" in os.environ or int(os.environ.get("WORLD_SIZE", "1")) > 1
    missing = [name for name in LAUNCHED_BY if not os.environ.get(name)]
    if not several or not missing or any(name in os.environ for name in MPI):
        return
    found = [name for name in ("LOCAL_RANK", *LAUNCHED_BY) if os.environ.get(name)]
    raise ValueError(
        f"the environment has {', '.join(found)} of a launcher but not {', '.join(missing)}: "
        f"`unset {' '.join(found)}` for a single process, or start several with torchrun or "
        "accelerate launch"
    )


@contextmanager
def _signals_that_end() -> Iterator[None]:
    """The system's own handling: a wait inside of torch never comes back to one in Python."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    former = {number: signal.signal(number, signal.SIG_DFL) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


def end_training(accelerator: Any) -> None:
    """`accelerator.end_training()`, which ends trackers and the group of processes."""
    if accelerator.num_processes > 1:
        GROUPS.append(torch.distributed.group.WORLD)
    accelerator.end_training()
