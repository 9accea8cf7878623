"""Figures and findings in words."""

from collections.abc import Mapping
from typing import Any

NAMES = {"exact": "exactly as asked", "partial": "stated facts right"}


def measure_name(name: str, report: dict[str, Any]) -> str:
    """A measure as a table's heading: whose verdict it is, and whether it was optimized."""
    if name in NAMES:
        return NAMES[name]
    if name == "judge":
        return f"judge {report['judge']}"
    return f"{name} (optimized)" if name in report["optimized"] else name


def distinct(report: dict[str, Any]) -> list[dict[str, Any]]:
    """The figures without repetitions: a method that does not search has one for all budgets."""
    found: list[dict[str, Any]] = []
    for one in report["figures"]:
        same = [o for o in found if o["method"] == one["method"] and o["spent"] == one["spent"]]
        if not any(other["overall"] == one["overall"] for other in same):
            found.append(one)
    return found


def label(one: dict[str, Any], report: dict[str, Any]) -> str:
    """A method, with its budget where the report has several distinct figures of it."""
    budgets = {other["budget"] for other in distinct(report) if other["method"] == one["method"]}
    return f"{one['method']} at {one['budget']}" if len(budgets) > 1 else one["method"]


def prompts(count: int) -> str:
    """`1 prompt`, `12 prompts`."""
    return f"{count} prompt" if count == 1 else f"{count} prompts"


def number(value: float, name: str) -> str:
    """A score as text: shares in per cent."""
    return f"{100 * value:.0f} %" if name in NAMES else f"{value:.3g}"


def unknown(bound: float | None) -> bool:
    """Whether an interval has no such end: infinite, which report.json says as null."""
    return bound is None or abs(bound) == float("inf")


def with_interval(found: Mapping[str, Any], name: str) -> str:
    """Mean and interval."""
    low, high = found["low"], found["high"]
    if unknown(low):  # one prompt tells nothing of the spread, nor do equal values of a reward
        return f"{number(found['mean'], name)} (spread unknown)"
    if name in NAMES:
        return f"{100 * found['mean']:.0f} % ({100 * low:.0f} to {100 * high:.0f})"
    return f"{found['mean']:.3g} ({low:.3g} to {high:.3g})"


def signed(found: Mapping[str, Any], name: str) -> str:
    """A difference and its interval; of shares in percentage points."""
    scale, unit = (100, " points") if name in NAMES else (1, "")
    digits = ".0f" if name in NAMES else ".2g"
    if found.get("equal") and found["mean"] == 0:
        return "no difference on any prompt"
    if unknown(found["low"]):
        return f"{scale * found['mean']:+{digits}}{unit} (spread unknown)"
    low, mean, high = (scale * found[key] for key in ("low", "mean", "high"))
    return f"{mean:+{digits}}{unit} (interval {low:+{digits}} to {high:+{digits}})"


def headline(report: dict[str, Any]) -> str:
    """What was found, in a sentence or two, whichever way it went."""
    main = report["main"]
    judged = f"judged by {report['judge']}"
    count = "a picture" if report["repeats"] == 1 else f"{report['repeats']} pictures"
    pictures = f"{prompts(report['prompts'])}, {count} of each by every method"
    first = report["figures"][0]
    start = f"{label(first, report)}: {with_interval(first['overall'][main], main)} "
    start += f"{measure_name(main, report)}, {judged} on {pictures}."
    last = {row["method"]: row for row in report["differences"] if row["measure"] == main}
    return " ".join([start, *(verdict(row) for row in last.values())])


def verdict(row: dict[str, Any]) -> str:
    """One paired difference as a sentence."""
    name = f"{row['method']} at {row['budget']}" if row["budget"] else row["method"]
    change = signed(row, row["measure"])
    if row["low"] > 0:
        return f"{name} is better than {row['against']}: {change}."
    if row["high"] < 0:
        return f"{name} is worse than {row['against']}: {change}."
    return f"{name} cannot be told from {row['against']}: {change}."


def levers(report: dict[str, Any]) -> list[str]:
    """Which method to use at which budget, a sentence each, and where searching stops paying."""
    main, sentences = report["main"], []
    methods = {one["method"] for one in report["figures"]}
    for budget in dict.fromkeys(one["budget"] for one in report["figures"] if len(methods) > 1):
        mine = [one for one in report["figures"] if one["budget"] == budget]
        best = max(mine, key=lambda one: one["overall"][main]["mean"])
        sentences.append(f"At {budget}: {_choice(best, mine, report)}")
    for method in dict.fromkeys(row["method"] for row in report["steps"]):
        sentences.append(saturation(method, report))
    return sentences


def _choice(best: dict[str, Any], mine: list[dict[str, Any]], report: dict[str, Any]) -> str:
    main, first = report["main"], mine[0]
    score = f"{with_interval(best['overall'][main], main)} {measure_name(main, report)}"
    rows = {
        row["method"]: row
        for row in report["differences"]
        if row["measure"] == main and row["budget"] == best["budget"]
    }
    if best is first:
        return f"use {first['method']}, {score}; nothing else here does better."
    row = rows[best["method"]]
    if row["low"] > 0:
        return f"use {best['method']}, {score}, {signed(row, main)} over {first['method']}."
    return (
        f"use {first['method']}: {best['method']} has {score}, but {signed(row, main)} "
        "may be chance."
    )


def saturation(method: str, report: dict[str, Any]) -> str:
    """Up to which budget more search still pays."""
    steps = [row for row in report["steps"] if row["method"] == method]
    paying = [row for row in steps if row["low"] > 0]
    if not paying:
        return f"{method}: no larger budget here is measurably better than the one before it."
    rest = steps[steps.index(paying[-1]) + 1 :]
    end = f"{method} still gains measurably up to {paying[-1]['to']}"
    if not rest:
        change = signed(paying[-1], paying[-1]["measure"])
        return f"{end}, the largest budget tried ({change} over {paying[-1]['from']})."
    adds = "; ".join(f"{row['from']} to {row['to']}: {signed(row, row['measure'])}" for row in rest)
    return f"{end} and is saturated beyond ({adds})."


def load_note(report: dict[str, Any]) -> str:
    """How busy the machine was, and so how far to trust the seconds."""
    load = report["load"]
    text = f"Load of the machine before the start: {load['before']:.2f}, mean {load['mean']:.2f}. "
    if load["before"] > load["quiet"]:
        return (
            f"{text}Other work kept it busy: compare by passes and processor time, not by seconds."
        )
    return f"{text}It was quiet: seconds can be compared."
