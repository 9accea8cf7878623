"""The end of a run that several processes share."""

from typing import Any

import torch

# The group of processes joins its threads as it is freed, and holds the interpreter's lock
# meanwhile; one of them may wait for that lock to free its last barrier (seen with gloo, torch
# 2.13: a process that had finished waited for ever). So it is not freed while the process lives.
GROUPS: list[Any] = []


def end_training(accelerator: Any) -> None:
    """`accelerator.end_training()`, which ends trackers and the group of processes."""
    if accelerator.num_processes > 1:
        GROUPS.append(torch.distributed.group.WORLD)
    accelerator.end_training()
