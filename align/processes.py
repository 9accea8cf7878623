"""A run that several processes share: the device of each, and the end."""

import os
from typing import Any

import torch

from align.models import best_device

# The group of processes joins its threads as it is freed, and holds the interpreter's lock
# meanwhile; one of them may wait for that lock to free its last barrier (seen with gloo, torch
# 2.13: a process that had finished waited for ever). So it is not freed while the process lives.
GROUPS: list[Any] = []


def own_device(device: str | None) -> str:
    """The device of this process: of several on a machine, each takes its own card of those it
    sees."""
    device = device or best_device()
    if device != "cuda" or "LOCAL_RANK" not in os.environ:
        return device
    return f"cuda:{int(os.environ['LOCAL_RANK']) % torch.cuda.device_count()}"


def end_training(accelerator: Any) -> None:
    """`accelerator.end_training()`, which ends trackers and the group of processes."""
    if accelerator.num_processes > 1:
        GROUPS.append(torch.distributed.group.WORLD)
    accelerator.end_training()
