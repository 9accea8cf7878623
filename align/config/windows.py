"""Gradient windows as they are written: `all`, `3`, `random:1-10`, `refl` and so on."""

import re
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
