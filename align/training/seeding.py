"""A run's own draws follow from its seed; the global generators are borrowed, and go on after."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from accelerate.utils import set_seed


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Python's, numpy's and torch's global generators at this seed (modulo 2^32); afterwards they
    are where they were."""
    python, numbers = random.getstate(), np.random.get_state()
    cards = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    with torch.random.fork_rng(devices=cards):
        set_seed(seed % 2**32)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numbers)


def image_seed(purpose: str, seed: int, update: int, index: int) -> int:
    """The seed of one image's noise, from the run's seed, the update and its global index."""
    return random.Random(f"align-{purpose}-{seed}-{update}-{index}").getrandbits(63)
