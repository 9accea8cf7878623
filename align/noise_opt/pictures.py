"""Curves of noise searches: one prompt's scores, and the mean gain over prompts."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from align.runs.files import atomic_path
from align.runs.page import curve_plot


def save_curves(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """A prompt's scores against the images made: this iteration's best, the best so far."""
    images = [row["generator_forwards"] for row in rows]
    series = {
        "best so far": (images, [row["best_total"] for row in rows]),
        "this iteration": (images, [row["total"] for row in rows]),
    }
    _save(path, series, "images made", "weighted score")


def save_gains(path: Path, results: Sequence[dict[str, Any]]) -> None:
    """Mean gain over the initial image, against seeds explored and against iterations after."""
    seeds = [_running_gain(r["explored"], r["initial_total"]) for r in results if r["explored"]]
    later = [
        [best - r["initial_total"] for best in r["optimized"]] for r in results if r["optimized"]
    ]
    series = {}
    if seeds:
        mean = _mean_of(seeds)
        series["seeds explored"] = (list(range(1, len(mean) + 1)), mean)
    if later:
        mean = _mean_of(later)
        series["iterations after"] = (list(range(1, len(mean) + 1)), mean)
    if series:
        _save(path, series, "seeds or iterations", "gain over the initial image")


def _running_gain(totals: Sequence[float], initial: float) -> list[float]:
    return (np.maximum.accumulate(totals) - initial).tolist()


def _mean_of(curves: Sequence[Sequence[float]]) -> list[float]:
    """The mean of curves of unequal length; each goes on at its last value."""
    longest = max(map(len, curves))
    padded = [[*curve, *[curve[-1]] * (longest - len(curve))] for curve in curves]
    return np.mean(padded, axis=0).tolist()


def _save(path: Path, series: dict[str, Any], xlabel: str, ylabel: str) -> None:
    figure = curve_plot(series, xlabel=xlabel, ylabel=ylabel)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=120)
