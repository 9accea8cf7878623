"""What ends a training before its last update, agreed on by all its processes."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from align.models.processes import SIGNALS
from align.rewards.score_cache import ScorerFailed


class Diverged(ArithmeticError):
    """A loss, a reward or a gradient stopped being a finite number, or a server gives none."""


class Interrupted(KeyboardInterrupt):
    """Somebody asked the run to stop."""


@contextmanager
def agreed(run: Any) -> Iterator[None]:
    """Raise in all processes of a run what any has met in the block, so that none waits for
    another: Diverged, or Interrupted where somebody asked it to stop."""
    fault = None
    try:
        yield
    except Diverged as error:
        fault = error
    except ScorerFailed as error:
        fault = Diverged(str(error))
    flags = torch.tensor([fault is not None, run.stop_asked()], dtype=torch.float32)
    if run.accelerator.num_processes > 1:
        flags = run.accelerator.reduce(flags.to(run.accelerator.device))
    if flags[0]:
        raise fault or Diverged("another process has met a value that is not finite, or none")
    if flags[1]:
        raise Interrupted


@contextmanager
def stop_signals() -> Iterator[Callable[[], bool]]:
    """Turn the first SIGINT or SIGTERM into a request that the update under way looks for; a
    second one interrupts at once. Outside the main thread signals are left alone."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked.is_set
        return

    def on_signal(number: int, frame: object) -> None:
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()

    former = {number: signal.signal(number, on_signal) for number in SIGNALS}
    try:
        yield asked.is_set
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


@contextmanager
def clear_memory_errors() -> Iterator[None]:
    """Say what to lower where memory runs out."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        known = ("out of memory", "not enough memory", "can't allocate memory")
        if isinstance(error, RuntimeError) and not any(k in str(error).lower() for k in known):
            raise
        raise MemoryError(
            "out of memory; lower --micro-batch-size, keep fewer steps with --grad-window (1 needs "
            "least), leave --checkpointing on, try --cache-embeddings, --vae-tiling and --offload, "
            "lower --height and --width, or name your card's size with --memory"
        ) from error
