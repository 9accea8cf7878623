"""The plots of a report, as matplotlib figures."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from align.evaluation.wording import label, measure_name
from align.runs.page import COLORS

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def by_category(report: dict[str, Any]) -> "Figure":
    """The main measure of every method, category by category, with intervals."""
    from matplotlib.figure import Figure

    figures = shown_figures(report)
    categories = list(report["categories"])
    height = 1.2 + len(categories) * max(0.42, 0.17 * len(figures))
    figure = Figure(figsize=(7, height), layout="constrained")
    axes = figure.add_subplot()
    for number, one in enumerate(figures):
        shift = 0.6 * ((number + 0.5) / len(figures) - 0.5)
        found = [one["categories"][name][report["main"]] for name in categories]
        axes.errorbar(
            [each["mean"] for each in found],
            [row + shift for row in range(len(categories))],
            xerr=_bars(found),
            fmt="o",
            markersize=5,
            capsize=2,
            color=COLORS[number % len(COLORS)],
            label=label(one, report),
        )
    axes.set_yticks(range(len(categories)), categories)
    axes.invert_yaxis()
    axes.set_xlabel(f"{measure_name(report['main'], report)}, 95 % interval over prompts")
    _plain(axes, report)
    if len(figures) > 1:
        figure.legend(frameon=False, loc="outside lower center", ncols=min(len(figures), 4))
    return figure


def against_compute(report: dict[str, Any]) -> "Figure":
    """Judged quality against what a picture costs: generator passes, and processor seconds."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    _curves(left, report, lambda spent: spent["generator_forwards"] + spent["generator_backwards"])
    left.set_xlabel("generator passes a picture (forward + backward)")
    left.set_ylabel(measure_name(report["main"], report))
    _curves(right, report, lambda spent: spent["cpu_seconds"])
    right.set_xlabel("processor seconds a picture, rewards included")
    right.legend(frameon=False)
    return figure


def _curves(axes: Any, report: dict[str, Any], cost: Callable[[dict[str, float]], float]) -> None:
    methods = list(dict.fromkeys(one["method"] for one in report["figures"]))
    for number, method in enumerate(methods):
        mine = [one for one in report["figures"] if one["method"] == method]
        costs = [cost(one["spent"]) for one in mine]
        found = [one["overall"][report["main"]] for one in mine]
        color = COLORS[number % len(COLORS)]
        if len(mine) > 1 and max(costs) == min(costs):  # no search: a budget buys nothing more
            axes.axhline(found[0]["mean"], color=color, linestyle="--", linewidth=1)
            costs, found = costs[:1], found[:1]
        means = [each["mean"] for each in found]
        axes.errorbar(
            costs, means, yerr=_bars(found), marker="o", capsize=3, color=color, label=method
        )
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:g}")
    _plain(axes, report, along="y")


def shown_figures(report: dict[str, Any]) -> list[dict[str, Any]]:
    """What a reader compares: every method, at its largest budget where there are several
    methods; the same picture is not shown twice."""
    methods = list(dict.fromkeys(one["method"] for one in report["figures"]))
    if len(methods) == 1:
        return report["figures"]
    return [[o for o in report["figures"] if o["method"] == method][-1] for method in methods]


def _bars(found: list[dict[str, Any]]) -> list[list[float]]:
    """Lengths down and up; none where the interval is not known."""
    lows = [max(0.0, each["mean"] - each["low"]) for each in found]
    highs = [max(0.0, each["high"] - each["mean"]) for each in found]
    return [[0.0 if v == float("inf") else v for v in ends] for ends in (lows, highs)]


def _plain(axes: Any, report: dict[str, Any], along: str = "x") -> None:
    from matplotlib.ticker import PercentFormatter

    if report["main"] in ("exact", "partial"):
        axis = axes.xaxis if along == "x" else axes.yaxis
        axis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        (axes.set_xlim if along == "x" else axes.set_ylim)(-0.02, 1.02)
    axes.grid(color="#e3e6ea")
    axes.spines[["top", "right"]].set_visible(False)
