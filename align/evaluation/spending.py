"""What a picture costs, counted by hooks: passes of generator and rewards, seconds, load."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor

from align.config.budget import Budget, parse_budget
from align.diffusion.denoisers import denoiser_module
from align.rewards.reward import Reward

QUIET_LOAD = 0.3


def parse_budgets(text: str) -> list[Budget]:
    """Budgets joined by commas, all of one unit, smallest first. Raises ValueError."""
    budgets = [parse_budget(part) for part in text.split(",")]
    if len({budget.unit for budget in budgets}) > 1:
        raise ValueError(f"budget is {text!r}; budgets of one comparison have one unit")
    return sorted(set(budgets), key=lambda budget: budget.amount)


@dataclass
class Spent:
    """What has been spent, counted per picture: a guided step is two generator passes."""

    images: int = 0
    """Pictures decoded."""
    generator_forwards: int = 0
    generator_backwards: int = 0
    reward_forwards: int = 0
    """Pictures scored, times the terms of the reward."""
    reward_backwards: int = 0
    seconds: float = 0.0
    """By a monotonic clock, model loading apart."""
    cpu_seconds: float = 0.0
    """Processor time of this process, all its threads together."""

    def __add__(self, other: "Spent") -> "Spent":
        mine, theirs = asdict(self), asdict(other)
        return Spent(**{name: mine[name] + theirs[name] for name in mine})

    def share(self, part: float) -> "Spent":
        """This times `part`; counts stay whole."""
        values: dict[str, Any] = {name: value * part for name, value in vars(self).items()}
        times = ("seconds", "cpu_seconds")
        return Spent(**{k: v if k in times else round(v) for k, v in values.items()})


@contextmanager
def spending(generator: Any, decoder: Any, reward: Reward | None) -> Iterator[Spent]:
    """Count what happens inside the context, whoever causes it; hooks tell, nobody reports.

    Args:
        generator: the denoiser or transformer; a pass of a batch counts its rows. A recomputation
            under gradient checkpointing counts as the forward pass it is.
        decoder: its rows are the pictures made; None counts none.
        reward: scored pictures are counted through its `terms`.
    """
    spent = Spent()

    def generated(_module: Any, inputs: tuple, named: dict, output: Any) -> None:
        rows = _rows(inputs, named)
        spent.generator_forwards += rows
        _on_gradient(output, lambda: _add(spent, "generator_backwards", rows))

    def decoded(_module: Any, inputs: tuple, named: dict, _output: Any) -> None:
        spent.images += _rows(inputs, named)

    hooks = [generator.register_forward_hook(generated, with_kwargs=True)]
    if decoder is not None:
        hooks.append(decoder.register_forward_hook(decoded, with_kwargs=True))
    if reward is not None:
        _count_reward(reward, spent)
    _synchronize()
    started, cpu = time.monotonic(), time.process_time()
    try:
        yield spent
        _synchronize()
    finally:
        spent.seconds += time.monotonic() - started
        spent.cpu_seconds += time.process_time() - cpu
        for hook in hooks:
            hook.remove()
        if reward is not None:
            del reward.terms


def spending_of(pipe: Any, reward: Reward | None) -> Any:
    """`spending` on a diffusers pipeline."""
    return spending(denoiser_module(pipe), pipe.vae.decoder, reward)


def seconds_of(action: Callable[[], Any], device: torch.device) -> float:
    """What an action takes, the least of three times.

    On a CPU without the time that it waited for a processor, so that other work on the machine does
    not count, but with that for anything else, such as a reward that is remote.
    """
    rounds = []
    for _ in range(3):
        _synchronize()
        started, queued, cpu = time.monotonic(), _queued(), time.process_time()
        action()
        _synchronize()
        seconds = time.monotonic() - started
        if device.type == "cpu":
            waited = _queued()
            if waited is None or queued is None:
                seconds = min(seconds, time.process_time() - cpu)
            else:
                seconds -= waited - queued
        rounds.append(seconds)
    return min(rounds)


def _queued() -> float | None:
    """Seconds for which this thread has waited for a processor; None where no system tells."""
    try:
        return int(Path("/proc/thread-self/schedstat").read_text().split()[1]) / 1e9
    except (OSError, ValueError, IndexError):
        return None


def load_average() -> float:
    """Processes that wanted the processors, mean of the last minute."""
    return psutil.getloadavg()[0]


def check_quiet(allow_busy: bool, limit: float = QUIET_LOAD) -> float:
    """The machine's load now. Raises RuntimeError where it is too busy to measure seconds."""
    load = load_average()
    if load > limit and not allow_busy:
        raise RuntimeError(
            f"the machine is busy (load {load:.2f}, at most {limit} allowed before seconds are "
            "measured); wait, or give --allow-busy or a budget in nfe or images"
        )
    return load


def _count_reward(reward: Reward, spent: Spent) -> None:
    score = reward.terms  # the method; an attribute of that name shadows it until it is deleted

    def counted(images: Tensor, *arguments: Any, **named: Any) -> dict[str, Tensor]:
        rows = len(images) * len(reward.functions)
        terms = score(images, *arguments, **named)
        spent.reward_forwards += rows
        if images.requires_grad:
            _on_gradient(images, lambda: _add(spent, "reward_backwards", rows))
        return terms

    reward.terms = counted


def _rows(inputs: tuple, named: dict) -> int:
    tensors = [value for value in (*inputs, *named.values()) if isinstance(value, Tensor)]
    return len(tensors[0])


def _on_gradient(output: Any, count: Any) -> None:
    """Call `count` each time a gradient reaches this output of a module."""
    first = output
    if not isinstance(output, Tensor):  # a tuple, or a diffusers output by name
        first = next(iter(output.values() if isinstance(output, dict) else output))
    if isinstance(first, Tensor) and first.requires_grad:
        first.register_hook(lambda _: count())


def _add(spent: Spent, name: str, rows: int) -> None:
    setattr(spent, name, getattr(spent, name) + rows)


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
