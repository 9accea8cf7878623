"""report.json, report.md, report.html and the PNG plots of a run."""

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from PIL import Image

from align import report as html
from align.evaluation import plots
from align.evaluation.run import Plan
from align.evaluation.summary import results_of, summarize
from align.evaluation.wording import (
    headline,
    label,
    levers,
    load_note,
    measure_name,
    number,
    signed,
    with_interval,
)
from align.files import atomic_path, finite, write_atomic, write_json
from align.report import Shot, command_line, objects_text

SHOWN_PER_CATEGORY = 1
Table = tuple[list[str], list[list[str]], str]


def write_reports(plan: Plan, records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Write all of a run's reports; returns what report.json holds."""
    report = summarize(plan, records)
    write_json(plan.folder / "report.json", report)
    figures = {"by-category": (plots.by_category(report), "The main measure by category")}
    if plan.command == "compare":
        text = "Judged quality against the cost of a picture"
        figures["quality-against-compute"] = (plots.against_compute(report), text)
    for name, (figure, _) in figures.items():
        with atomic_path(plan.folder / f"{name}.png") as temporary:
            figure.savefig(temporary, dpi=130)
    write_atomic(plan.folder / "report.md", markdown(report, plan, list(figures)))
    drawings = {name: html.plot(*figure) for name, figure in figures.items()}
    write_atomic(plan.folder / "report.html", page(report, plan, records, drawings))
    return report


def findings(report: dict[str, Any], command: str) -> list[str]:
    """The findings in sentences, the warning first."""
    lines = [report["warning"]] if report["warning"] else []
    return [*lines, headline(report), *(levers(report) if command == "compare" else [])]


def markdown(report: dict[str, Any], plan: Plan, plots: Sequence[str]) -> str:
    """The report as Markdown; a warning is its first line."""
    lines = findings(report, plan.command)
    lines.insert(1 if report["warning"] else 0, f"# align {plan.command}: {plan.prompts.name}")
    parts = ["\n\n".join(lines)]
    parts += [f"![{name}]({name}.png)" for name in plots]
    for title, (head, rows, note) in tables(report).items():
        grid = [head, ["---"] * len(head), *rows]
        body = "\n".join(f"| {' | '.join(row)} |" for row in grid)
        parts.append(f"## {title}\n\n{body}" + (f"\n\n{note}" if note else ""))
    parts.append(f"## Settings\n\n{load_note(report)}\n\n    {command(plan)}")
    return "\n\n".join(parts) + "\n"


def page(
    report: dict[str, Any],
    plan: Plan,
    records: Sequence[dict[str, Any]],
    drawings: dict[str, str],
) -> str:
    """The report as one HTML file that holds its pictures."""
    first, *rest = findings(report, plan.command)
    body = [html.paragraph(first, "lead"), *map(html.paragraph, rest)]
    if "quality-against-compute" in drawings:
        body += [html.heading("Quality against compute"), drawings["quality-against-compute"]]
    body += [html.heading("By category"), drawings["by-category"]]
    for title, (head, rows, note) in tables(report).items():
        body += [html.heading(title), html.table(head, rows)]
        body += [html.paragraph(note, "note")] if note else []
    body += [
        html.heading("Pictures"),
        html.paragraph(
            "The first prompt of each category with its first noise: a fixed choice, not the best "
            "ones." + (" Under each picture is what the verifier sees in it." * plan.judges.scenes),
            "note",
        ),
        html.pictures(shots(report, plan, records)),
        html.heading("Settings"),
        html.paragraph(load_note(report)),
        html.code(command(plan)),
        html.table(["setting", "value"], settings(report, plan)),
    ]
    return html.html_page(f"align {plan.command}: {plan.prompts.name}", *body)


def tables(report: dict[str, Any]) -> dict[str, Table]:
    """Every table: heading -> (head, rows, note)."""
    made = {"Scores": _scores(report), "Scores by category": _categories(report)}
    if report["differences"]:
        made["Paired differences"] = _differences(report)
    if report["steps"]:
        made["What a larger budget adds"] = _steps(report)
    made["Cost of a picture"] = _costs(report)
    if any("diversity" in one for one in report["figures"]):
        made["Diversity"] = _diversity(report)
    if any("quality" in one or "nearest" in one for one in report["figures"]):
        made["Distance to real pictures"] = _quality(report)
    return made


def _scores(report: dict[str, Any]) -> Table:
    names, figures = report["measures"], report["figures"]
    grid = [[with_interval(one["overall"][name], name) for one in figures] for name in names]
    head = ["measure", *(label(one, report) for one in figures)]
    rows = [[measure_name(name, report), *row] for name, row in zip(names, grid, strict=True)]
    if len(figures) > 4:  # then the methods go down the page
        rows = [list(row) for row in zip(head, *rows, strict=True)]
        head, *rows = rows
    note = "Means over categories; 95 % intervals by a bootstrap over prompts."
    if report["optimized"] and report["held_out"]:
        note += (
            f" Optimized here: {', '.join(report['optimized'])}. Held out: "
            f"{', '.join(report['held_out'])}. Where only the optimized ones rise, they are hacked."
        )
    return head, rows, note


def _categories(report: dict[str, Any]) -> Table:
    figures = plots.shown_figures(report)
    names = [name for name in report["measures"] if name in ("exact", "partial")]
    names = list(dict.fromkeys([report["main"], *names])) if len(figures) < 3 else [report["main"]]
    columns = [(one, name) for one in figures for name in names]
    titles = [
        label(one, report) + (f": {measure_name(name, report)}" if len(names) > 1 else "")
        for one, name in columns
    ]
    rows = [
        [f"{category} ({count} prompts)"]
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
        for one in report["figures"]
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
    for one in report["figures"]:
        found = one.get("diversity", {})
        cells = [
            f"{with_interval(found[n], n)}, {found[n]['prompts']} prompts" if n in found else "-"
            for n in names
        ]
        rows.append([label(one, report), *cells])
    note = "Between the exact pictures of one prompt." * ("features" not in names)
    return ["method", *(titles[name] for name in names)], rows, note


def _quality(report: dict[str, Any]) -> Table:
    rows = []
    sources = [(label(one, report), one) for one in report["figures"]]
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


def shots(
    report: dict[str, Any], plan: Plan, records: Sequence[dict[str, Any]]
) -> list[tuple[str, list[Shot]]]:
    """Each category's first prompts, all methods side by side."""
    chosen: dict[str, list[dict[str, Any]]] = {}
    for record in records:
        chosen.setdefault(record["category"], []).append(record)
    groups = []
    for category, mine in chosen.items():
        for record in mine[:SHOWN_PER_CATEGORY]:
            row = []
            for one in plots.shown_figures(report):
                result = results_of(record, one["method"], one["budget"])[0]
                row.append(_shot(plan.folder, label(one, report), result, report))
            groups.append((f"{category}: {record['prompt']}", row))
    return groups


def _shot(folder: Path, name: str, result: dict[str, Any], report: dict[str, Any]) -> Shot:
    scores = result["scores"]
    with Image.open(folder / result["image"]) as opened:
        image = opened.convert("RGB")
    if "exact" in scores:
        seen = [SimpleNamespace(**one) for one in scores["objects"]]
        return Shot(image, name, objects_text(seen), good=scores["exact"] == 1)
    return Shot(image, name, f"{report['main']} {number(scores[report['main']], '')}")


def settings(report: dict[str, Any], plan: Plan) -> list[list[str]]:
    """The settings that matter to a reader."""
    config = plan.config
    rows: dict[str, Any] = {
        "model": config.model,
        "prompts": f"{plan.prompts.name}, {len(plan.prompts)}",
        "judge": report["judge"],
        "reward": config.reward,
        "weights": config.weights if config.reward else None,
        "denoising steps": config.num_inference_steps,
        "guidance": config.guidance_scale,
        "seed": config.seed,
        "version": report["run"]["versions"].get("align-diffusion"),
        "commit": report["run"]["git_commit"],
    }
    return [[k, str(finite(v))] for k, v in rows.items() if v is not None]


def command(plan: Plan) -> str:
    """The command that does the same again."""
    return command_line(plan.command, plan.config)
