"""Gradient windows: which denoising steps of an update keep their gradient.

Every draw depends on the seed, the update and (per sample) the image's global index alone, never
on how a batch is split. Standard library only, so that a config can check its window.
"""

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass

ALLOWED = (
    "all, a number of last steps, random, random:A-B, random-per-sample[:A-B], draft-lv[:N], "
    "refl, drtune[:N], sparse:N or sparse:I,J,K"
)
REFL_SHARE = 0.75  # ReFL (2304.05977) draws its step from the last quarter: 30 to 39 of 40
DRTUNE_STEPS = 5


@dataclass(frozen=True)
class Window:
    """A window's rule: `kind` is tail, random, random-per-sample, draft-lv, refl, drtune or sparse.

    `low` and `high` bound the length of a tail (or are ReFL's first and last step), `count` is the
    number of fresh noisings or of drawn steps, `indices` are sparse's own steps.
    """

    kind: str
    low: int = 0
    high: int = 0
    count: int = 0
    indices: tuple[int, ...] = ()


@dataclass(frozen=True)
class Draw:
    """One update's window for the images of one forward pass.

    `kept[step][image]` says whether that prediction carries gradient; `detach_input` cuts the
    gradient through the latents that a kept step sees (DRTune); `fresh` > 0 asks for that many
    fresh noisings of the last step (DRaFT-LV); `x0_at` is ReFL's step.
    """

    label: str
    kept: tuple[tuple[bool, ...], ...]
    detach_input: bool = False
    fresh: int = 0
    x0_at: int | None = None

    @property
    def first(self) -> int:
        """The first step at which any image keeps its gradient."""
        return next(step for step, row in enumerate(self.kept) if any(row))


def parse_window(text: str, steps: int) -> Window:
    """The window of `TrainConfig.grad_window` for a run of `steps` denoising steps.

    Raises ValueError for a form that is unknown and for a window outside the steps.
    """
    name, colon, argument = text.strip().partition(":")
    if name == "all" and not colon:
        return Window("tail", steps, steps)
    if re.fullmatch(r"\d+", name) and not colon:
        return Window("tail", _within(text, int(name), steps), int(name))
    if name in ("random", "random-per-sample"):
        low, high = _range(text, argument) if colon else (1, steps)
        return Window(name, _within(text, low, steps), _within(text, high, steps))
    if name == "draft-lv":
        count = _count(text, argument) if colon else 2
        return Window(name, 1, 1, count)
    if name == "refl" and not colon:
        return Window(name, min(int(REFL_SHARE * steps), steps - 1), steps - 1)
    if name == "drtune":
        count = _count(text, argument) if colon else min(DRTUNE_STEPS, steps)
        return Window(name, count=_within(text, count, steps))
    if name == "sparse" and re.fullmatch(r"\d+", argument):
        return Window(name, count=_within(text, int(argument), steps))
    if name == "sparse" and re.fullmatch(r"\d+(,\d+)+,?|\d+,", argument):
        indices = tuple(sorted({int(i) for i in argument.split(",") if i}))
        if indices[-1] >= steps:
            raise ValueError(
                f"grad_window is {text!r}; its steps must be from 0 to {steps - 1}, as "
                f"num_inference_steps is {steps}"
            )
        return Window(name, indices=indices)
    raise ValueError(f"grad_window is {text!r}; allowed are {ALLOWED}")


def draw_window(
    window: Window, steps: int, *, seed: int, update: int, indices: Sequence[int]
) -> Draw:
    """The window of an update, for the images with these global indices.

    All images and processes share one draw, except with `random-per-sample`.
    """
    shared = random.Random(f"align-window-{seed}-{update}")
    width = len(indices)
    if window.kind == "random-per-sample":
        lengths = [
            random.Random(f"align-window-{seed}-{update}-{i}").randint(window.low, window.high)
            for i in indices
        ]
        kept = tuple(tuple(step >= steps - k for k in lengths) for step in range(steps))
        return Draw(f"last {min(lengths)}-{max(lengths)} of {steps}", kept)
    if window.kind in ("tail", "random"):
        length = shared.randint(window.low, window.high)
        return Draw(f"last {length} of {steps}", _rows(range(steps - length, steps), steps, width))
    if window.kind == "draft-lv":
        last = _rows(range(steps - 1, steps), steps, width)
        return Draw(f"last step, {window.count} fresh noises", last, fresh=window.count)
    if window.kind == "refl":
        step = shared.randint(window.low, window.high)
        return Draw(f"x0 at step {step}", _rows([step], steps, width), x0_at=step)
    if window.kind == "drtune":
        # DRTune (2405.00760, algorithm 1): equally spaced steps from a random start.
        stride = steps // window.count
        start = shared.randint(0, steps - 1 - stride * (window.count - 1))
        chosen = [start + stride * i for i in range(window.count)]
        detached = "inputs detached, steps " + ",".join(map(str, chosen))
        return Draw(detached, _rows(chosen, steps, width), detach_input=True)
    chosen = window.indices or sorted(shared.sample(range(steps), window.count))
    return Draw("steps " + ",".join(map(str, chosen)), _rows(chosen, steps, width))


def image_seed(purpose: str, seed: int, update: int, index: int) -> int:
    """The seed of one image's noise, from the run's seed, the update and its global index."""
    return random.Random(f"align-{purpose}-{seed}-{update}-{index}").getrandbits(63)


def _rows(chosen: Sequence[int], steps: int, width: int) -> tuple[tuple[bool, ...], ...]:
    return tuple((step in chosen,) * width for step in range(steps))


def _range(text: str, argument: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)-(\d+)", argument)
    if not match or int(match[1]) > int(match[2]):
        raise ValueError(f"grad_window is {text!r}; a range is written A-B with A at most B")
    return int(match[1]), int(match[2])


def _count(text: str, argument: str) -> int:
    if not re.fullmatch(r"\d+", argument) or int(argument) < 1:
        raise ValueError(f"grad_window is {text!r}; after the colon goes a count of at least 1")
    return int(argument)


def _within(text: str, length: int, steps: int) -> int:
    if not 1 <= length <= steps:
        raise ValueError(
            f"grad_window is {text!r}; it must keep from 1 to {steps} steps, as "
            f"num_inference_steps is {steps}"
        )
    return length
