"""Gradient windows: which denoising steps of an update keep their gradient.

Every draw depends on the seed, the update and (per sample) the image's global index alone, never
on how a batch is split.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from align.config.windows import Window


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


def _rows(chosen: Sequence[int], steps: int, width: int) -> tuple[tuple[bool, ...], ...]:
    return tuple((step in chosen,) * width for step in range(steps))
