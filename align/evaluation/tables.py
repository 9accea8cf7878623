"""The tables of a report, as text: heading -> (head, rows, note)."""

from collections.abc import Sequence
from typing import Any

from align.evaluation.plots import shown_figures
from align.evaluation.wording import (
    distinct,
    label,
    load_note,
    measure_name,
    number,
    prompts,
    signed,
    with_interval,
)
from align.training.measures import TONE

Table = tuple[list[str], list[list[str]], str]


def tables(report: dict[str, Any]) -> dict[str, Table]:
    """Every table: heading -> (head, rows, note)."""
    made = {"Scores": _scores(report)}
    if len(report["measures"]) > len(_scores_of(report)):
        made["Rewards, optimized and held out"] = _rewards(report)
    made["Scores by category"] = _categories(report)
    if report["differences"]:
        made["Paired differences"] = _differences(report)
    if report["steps"]:
        made["What a larger budget adds"] = _steps(report)
    made["Cost of a picture"] = _costs(report)
    if any("diversity" in one for one in report["figures"]):
        made["Diversity"] = _diversity(report)
    if any("quality" in one or "nearest" in one for one in report["figures"]):
        made["Distance to real pictures"] = _quality(report)
    if any("hacking" in one for one in report["figures"]):
        made["Against hacking"] = _hacking(report)
    return made


def _hacking(report: dict[str, Any]) -> Table:
    shown = [one for one in distinct(report) if "hacking" in one]
    names = list(dict.fromkeys(name for one in shown for name in one["hacking"]["means"]))
    rows = []
    for one in shown:
        found, grid = one["hacking"]["means"], one["hacking"]["grid"]
        change = "-"
        if grid:
            change = f"{grid['rise']:+.2g} ({grid['low']:+.2g} to {grid['high']:+.2g})"
            change += f" at {grid['period']} px"
        cells = [f"{found[name]:.4g}" if name in found else "-" for name in names]
        rows.append([label(one, report), *cells, change])
    parts = [f"{name}: {text}" for name, text in TONE.items() if name in names]
    note = (
        f"{'; '.join(parts)}; grid: by how much one line of pixels of a period stands out from the "
        "others, at the strongest period. The last column is its rise over the first method, with "
        "a 95 % interval over prompts."
    )
    if "vendi" in names:
        kind = report["references"]["vendi"]
        note += f" vendi: how many different pictures a prompt has, by features of {kind}."
    return ["method", *names, "grid, against the first"], rows, note


def _scores(report: dict[str, Any]) -> Table:
    head, rows = _grid(report, _scores_of(report))
    return head, rows, "Means over categories; 95 % intervals by a bootstrap over prompts."


def _scores_of(report: dict[str, Any]) -> list[str]:
    return [name for name in report["measures"] if name in ("judge", "exact", "partial")]


def _rewards(report: dict[str, Any]) -> Table:
    names = [name for name in report["measures"] if name not in _scores_of(report)]
    head, rows = _grid(report, names)
    note = ""
    if report["optimized"] and report["held_out"]:
        note = (
            f"Optimized here: {', '.join(report['optimized'])}. Held out: "
            f"{', '.join(report['held_out'])}. Where only the optimized ones rise, they are hacked."
        )
    return head, rows, note


def _grid(report: dict[str, Any], names: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    """Methods down the page, measures across; the other way round where that is narrower."""
    figures = distinct(report)
    head = ["method", *(measure_name(name, report) for name in names)]
    rows = [
        [label(one, report), *(with_interval(one["overall"][name], name) for name in names)]
        for one in figures
    ]
    if len(figures) < len(names):
        head, *rows = [list(row) for row in zip(head, *rows, strict=True)]
        head[0] = "measure"
    return head, rows


def _categories(report: dict[str, Any]) -> Table:
    figures = shown_figures(report)
    names = [name for name in report["measures"] if name in ("exact", "partial")]
    names = list(dict.fromkeys([report["main"], *names])) if len(figures) < 3 else [report["main"]]
    columns = [(one, name) for one in figures for name in names]
    titles = [
        label(one, report) + (f": {measure_name(name, report)}" if len(names) > 1 else "")
        for one, name in columns
    ]
    rows = [
        [f"{category} ({prompts(count)})"]
        + [with_interval(one["categories"][category][name], name) for one, name in columns]
        for category, count in report["categories"].items()
    ]
    note = "" if len(names) > 1 else f"The main measure: {measure_name(report['main'], report)}."
    return ["category", *titles], rows, note


def _differences(report: dict[str, Any]) -> Table:
    rows = []
    for row in report["differences"]:
        if row["measure"] not in (report["main"], *report["optimized"], *report["held_out"]):
            continue
        name = f"{row['method']} at {row['budget']}" if row["budget"] else row["method"]
        verdict = "better" if row["low"] > 0 else "worse" if row["high"] < 0 else "undecided"
        name = f"{name} minus {row['against']}"
        measure = measure_name(row["measure"], report)
        rows.append([name, measure, signed(row, row["measure"]), verdict])
    note = "Same prompts and seeds; 0 outside the interval decides."
    if len(rows) > 1:
        note += (
            f" Each of these {len(rows)} intervals holds its own difference in 95 % of cases; if "
            f"nothing differed at all, about {0.05 * len(rows):.1f} of them would still decide."
        )
    return ["difference", "measure", "mean and interval", "verdict"], rows, note


def _steps(report: dict[str, Any]) -> Table:
    rows = [
        [f"{row['method']}, {row['from']} to {row['to']}", signed(row, row["measure"])]
        for row in report["steps"]
    ]
    note = "Paired by prompt. A search is saturated where no step beyond is above 0 for certain."
    return ["step", measure_name(report["main"], report)], rows, note


def _costs(report: dict[str, Any]) -> Table:
    keys = {
        "images": "drawn",
        "generator_forwards": "generator forward",
        "generator_backwards": "backward",
        "reward_forwards": "reward forward",
        "reward_backwards": "backward",
        "seconds": "seconds",
        "cpu_seconds": "CPU seconds",
    }
    rows = [
        [
            label(one, report),
            *(f"{one['spent'][k]:.2f}" if "sec" in k else f"{one['spent'][k]:.0f}" for k in keys),
        ]
        for one in distinct(report)
    ]
    note = (
        "Pictures drawn and passes made for one finished picture. A guided denoising step is two "
        "generator passes, which a budget in nfe counts once; backward passes count at their "
        "measured cost there, and not at all in a budget in images. "
    )
    return ["method", *keys.values()], rows, note + load_note(report)


def _diversity(report: dict[str, Any]) -> Table:
    names = list(dict.fromkeys(n for one in report["figures"] for n in one.get("diversity", {})))
    titles = {
        "position": "positions apart, px",
        "radius": "radii apart, px",
        "unsaid": "unsaid attributes that differ",
        "features": "1 - cosine of CLIP features",
    }
    rows = []
    for one in distinct(report):
        found = one.get("diversity", {})
        cells = [
            f"{with_interval(found[n], n)}, {prompts(found[n]['prompts'])}" if n in found else "-"
            for n in names
        ]
        rows.append([label(one, report), *cells])
    note = "Between the exact pictures of one prompt." * ("features" not in names)
    return ["method", *(titles[name] for name in names)], rows, note


def _quality(report: dict[str, Any]) -> Table:
    rows = []
    sources = [(label(one, report), one) for one in distinct(report)]
    if "nearest" in report["references"] or "quality" in report["references"]:
        sources.append(("new true pictures", report["references"]))
    for name, one in sources:
        quality, nearest = one.get("quality", {}), one.get("nearest", {})
        values = [quality.get("cmmd"), quality.get("frechet"), *map(nearest.get, ("mean", "least"))]
        rows.append([name, *("-" if v is None else number(v, "") for v in values)])
    head = ["pictures", "CMMD", "Fréchet", "nearest training picture, mean", "least"]
    kind = report["references"]["features"]
    note = (
        f"CMMD and Fréchet distance in features of {kind}, lower is better; they depend on the "
        "number of pictures, so compare within this table only. The distance to the nearest "
        "training picture is a root mean square over pixels in [0, 1]; far below that of new true "
        "pictures would mean copying."
    )
    if kind in report["optimized"]:
        note += f" {kind} was optimized here, so its distances may flatter."
    return head, rows, note
