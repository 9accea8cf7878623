"""report.json, report.md, report.html and the PNG plots of a run."""

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from align.evaluation import plots
from align.evaluation.run import Plan
from align.evaluation.summary import results_of, summarize
from align.evaluation.tables import tables
from align.evaluation.wording import (
    headline,
    label,
    levers,
    load_note,
    number,
)
from align.runs import page as html
from align.runs.files import atomic_path, finite, write_atomic, write_json
from align.runs.page import Shot, command_line, objects_text
from align.runs.pictures import read_picture

SHOWN_PER_CATEGORY = 1


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
    image = read_picture(folder / result["image"])
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
