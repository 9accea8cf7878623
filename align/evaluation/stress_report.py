"""What ascents of a reward have shown: means by step with intervals, one plot, one sentence."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from align.evaluation.statistics import difference, estimate
from align.evaluation.summary import as_dict
from align.evaluation.wording import prompts as counted
from align.evaluation.wording import signed
from align.runs.files import atomic_path
from align.runs.page import COLORS

MEASURES = {"verifier": "exact", "verifier-partial": "partial"}


def summarize(
    reward: Float[ndarray, "steps n"],
    judge: Float[ndarray, "steps n"],
    categories: Sequence[str],
    reward_name: str,
    judge_name: str,
    still: int = 0,
) -> dict[str, Any]:
    """Figures by step, the judge's best step, the first later one where it is below that, and
    what they mean in a sentence.

    Row k of the scores is after k steps. Categories weigh the same; intervals (95 %) are over
    prompts, gains are paired by prompt. `still` prompts had no gradient.
    """
    bounds = (0.0, 1.0) if judge_name in MEASURES else None
    rows = [
        {
            "step": k,
            "reward": as_dict(estimate(reward[k], categories)),
            "judge": as_dict(estimate(judge[k], categories, bounds=bounds)),
            "reward_gain": as_dict(difference(reward[0], reward[k], categories)),
            "judge_gain": as_dict(difference(judge[0], judge[k], categories)),
        }
        for k in range(len(reward))
    ]
    best = int(np.argmax([row["judge"]["mean"] for row in rows]))
    later = {k: difference(judge[best], judge[k], categories) for k in range(best + 1, len(rows))}
    falls = next((k for k, fall in later.items() if fall.high < 0), None)
    report = {
        "reward": reward_name,
        "judge": judge_name,
        "measure": MEASURES.get(judge_name, "judge"),
        "best_step": best,
        "falls_from": falls,
        "fall": as_dict(later[falls]) if falls is not None else None,
        "without_gradient": still,
        "steps": rows,
    }
    return {"sentence": _sentence(report, reward.shape[1]), **report}


def _sentence(report: dict[str, Any], prompts: int) -> str:
    """Up to which step and gain of the reward a rise is real, and from which step it is not."""
    reward, judge, measure = report["reward"], report["judge"], report["measure"]
    best, falls, rows = report["best_step"], report["falls_from"], report["steps"]
    if report["without_gradient"] == prompts:
        return f"The gradient of {reward} is 0 for every prompt, so nothing was raised."
    top, on = rows[best], counted(prompts)
    gain = f"{reward} {top['reward_gain']['mean']:+.3g}"
    change = signed(top["judge_gain"], measure)
    if best == 0:
        start = f"No rise of {reward} is real: {judge} is at its best at the start ({on})"
    elif top["judge_gain"]["low"] > 0:
        start = f"Up to step {best} ({gain}) the rise is real: {judge} {change} on {on}"
    else:
        start = (
            f"No rise of {reward} is known to be real: at step {best} ({gain}), its best, {judge} "
            f"has changed by {change} on {on}"
        )
    if falls is None:
        return f"{start}; {judge} did not fall within {len(rows) - 1} steps."
    gain = f"{reward} {rows[falls]['reward_gain']['mean']:+.3g}"
    return f"{start}; from step {falls} ({gain}) it is not: {signed(report['fall'], measure)}."


def save_plot(path: Path, report: dict[str, Any], xlabel: str) -> None:
    """Judge and reward against the step, with their intervals as bands."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    figure = Figure(figsize=(7, 5), layout="constrained")
    rows = report["steps"]
    steps = [row["step"] for row in rows]
    for number, (axes, name) in enumerate(
        zip(figure.subplots(2, 1, sharex=True), ("judge", "reward"), strict=True)
    ):
        color = COLORS[number]
        mean, low, high = (
            np.array([row[name][key] for row in rows]) for key in ("mean", "low", "high")
        )
        axes.plot(steps, mean, color=color, linewidth=2)
        known = np.isfinite(low) & np.isfinite(high)  # one prompt has no interval
        axes.fill_between(steps, low, high, where=known, color=color, alpha=0.2, linewidth=0)
        role = "judge" if name == "judge" else "raised"
        axes.set_ylabel(f"{report[name] if len(report[name]) < 30 else name} ({role})")
        for key, style in (("best_step", "--"), ("falls_from", ":")):
            if report[key] is not None:
                axes.axvline(report[key], color="#4a4f57", linestyle=style, linewidth=1)
        axes.grid(color="#e3e6ea")
        axes.spines[["top", "right"]].set_visible(False)
        if name == "judge" and report["measure"] != "judge":
            axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel(xlabel)
    figure.suptitle("dashed: the judge's best step; dotted: from here it is below that", fontsize=9)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=120)
