"""What a finished run says about itself: report.json, the LoRA's model card, the upload."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from align.models.processes import is_first
from align.runs.files import brief, write_atomic, write_json
from align.runs.folder import read_metrics
from align.training.judge import not_held_out
from align.training.measures import TONE, means
from align.training.pictures import PICTURES
from align.training.runs import Run

PAIR = ("before.png", "after.png")


def write_report(
    run: Run, after: dict[str, float], card: Callable[[Any, dict[str, Any]], str]
) -> dict[str, Any]:
    """Write report.json and the model card, upload where asked; returns the report.

    `after` are the mean scores of the fixed pictures by the trained model, by reward term;
    `card(config, report)` is the text of the LoRA's card.
    """
    c, records = run.config, read_metrics(run.folder)
    last = run.course.get("last")  # judgment, of the weights that are saved
    report: dict[str, Any] = {
        "steps": run.done,
        "scheduler": type(run.pipe.scheduler).__name__,
        "pictures": {"before": run.course.get("pictures", {}), "after": after},
        "seconds": sum(record["seconds"] for record in records),
        "warnings": [last["warning"]] if last and "warning" in last else [],
    }
    if last:
        fault = not_held_out(c)
        report["warnings"] = [*([fault] if fault else []), *report["warnings"]]
        base = run.course["base"]
        report["judge"] = {
            "before": sum(base["judge"]) / len(base["judge"]),
            "after": last["judge"],
            "best": run.course["score"],
            "best_step": run.course["step"],
            "diversity_before": base["diversity"],
            "diversity_after": last["diversity"],
            "held_out": fault is None,
        }
        if "measures" in last:
            report["judge"]["measures"] = {
                "before": means(base["measures"]),
                "after": last["measures"],
                "grid": last.get("grid"),
                "features": run.course.get("features"),
            }
        if "stopped" in run.course:
            report["warnings"] = [*report["warnings"], run.course["stopped"]]
    write_json(run.folder / "report.json", report)
    for name in PAIR:
        picture = (run.folder / "images" / name).read_bytes()
        write_atomic(run.folder / "lora" / name, picture)
    write_atomic(run.folder / "lora" / "README.md", card(c, report))
    if c.push_to_hub:
        push_to_hub(run.folder / "lora", c.push_to_hub)
    return report


def model_card(
    config: Any,
    report: dict[str, Any],
    *,
    title: str,
    how: str,
    code: Sequence[str],
    settings: Mapping[str, Any],
    front: Sequence[str] = (),
) -> str:
    """A Hub model card in Markdown: how to load the LoRA (`code`), its training (`how`, and the
    method's own `settings`) and figures; `front` are further lines of its front matter."""
    c = config
    shown = {
        "model": c.model,
        "reward": c.reward,
        "prompts": c.prompts or "the model's default set",
        "updates": report["steps"],
        "learning rate": f"{c.learning_rate:g} ({c.lr_schedule})",
        "LoRA": f"rank {c.lora_rank}, alpha {c.lora_alpha or c.lora_rank:g}",
        **settings,
        "seed": c.seed,
    }
    lines = [
        *("---", *front, "library_name: diffusers", "tags:", "- lora", "- text-to-image"),
        *("- reward-fine-tuning", "---", "", f"# {title}", ""),
        f"Trained from {c.model} with {how}.",
        *("", "```python", *code, "```", ""),
        "| setting | value |",
        "| --- | --- |",
        *(f"| {name} | {value} |" for name, value in shown.items()),
        *("", "## Figures", "", *figures(report)),
    ]
    return "\n".join(lines) + "\n"


def figures(report: dict[str, Any]) -> list[str]:
    """The card's lines of figures and pictures."""
    before, after = report["pictures"]["before"], report["pictures"]["after"]
    rows = [(f"{n} (fixed training pictures)", before[n], after[n]) for n in before if n in after]
    if "judge" in report:
        j = report["judge"]
        rows.append((judge_name(j), j["before"], j["after"]))
        rows.append(("diversity", j["diversity_before"], j["diversity_after"]))
        rows += measure_rows(j.get("measures"))
    lines = ["| measure | base | trained |", "| --- | --- | --- |"]
    lines += [f"| {name} | {old:.4g} | {new:.4g} |" for name, old, new in rows]
    if "judge" in report:
        lines += grid_lines(report["judge"].get("measures"))
        best, step = report["judge"]["best"], report["judge"]["best_step"]
        lines += ["", f"The judge's best was {best:.4g} at update {step}."]
    lines += [f"\nWarning: {warning}." for warning in report["warnings"]]
    lines += ["", "The same prompts and noises, base and trained:", ""]
    return [*lines, *(f"![{name.removesuffix('.png')}]({name})" for name in PAIR)]


def measure_rows(measures: dict[str, Any] | None) -> list[tuple[str, float, float]]:
    """(name, base, trained) of the measures against hacking, on the judge's pictures."""
    if measures is None:
        return []
    names = {**TONE, "vendi": f"Vendi score, features of {measures['features']}"}
    before, after = measures["before"], measures["after"]
    return [(names[n], before[n], after[n]) for n in names if n in before and n in after]


def grid_lines(measures: dict[str, Any] | None) -> list[str]:
    """How the grid in pictures has changed, in a sentence."""
    found = measures and measures["grid"]
    if not found:
        return []
    interval = f"interval {found['low']:.2g} to {found['high']:.2g}"
    sure = "" if found["low"] > 0 or found["high"] < 0 else ", which may be chance"
    return [
        "",
        f"Grid of {found['period']} pixels, trained minus base: {found['rise']:+.2g} "
        f"({interval}{sure}).",
    ]


def judge_name(judge: dict[str, Any]) -> str:
    """What a report calls its judge; one that was trained on is not held out."""
    return "held-out judge" if judge.get("held_out", True) else "judge (also trained on)"


def summary_by_one(folder: Path) -> str | None:
    """`summary`, for one of several processes to print; None for the others."""
    return summary(folder) if is_first() else None


def summary(folder: Path) -> str:
    """What a finished run has reached, in a few lines: the model card's figures and the files."""
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    before, after = report["pictures"]["before"], report["pictures"]["after"]
    lines = [
        f"{name}: {before[name]:.4g} -> {after[name]:.4g} (mean of {PICTURES} fixed pictures)"
        for name in before
        if name in after
    ]
    if "judge" in report:
        judge = report["judge"]
        lines.append(
            f"{judge_name(judge)}: {judge['before']:.4g} -> {judge['after']:.4g}, best "
            f"{judge['best']:.4g} at update {judge['best_step']}"
        )
        lines += [line for line in grid_lines(judge.get("measures")) if line]
    lines += [f"warning: {warning}" for warning in report["warnings"]]
    return "\n".join([*lines, f"LoRA: {folder / 'lora'}", f"pictures: {folder / 'images'}"])


def push_to_hub(folder: Path, repository: str) -> str:
    """Upload a LoRA's folder to the Hub; returns its address.

    Raises ValueError where nobody is logged in or the name is not allowed.
    """
    from huggingface_hub import HfApi

    try:
        address = HfApi().create_repo(repository, exist_ok=True)
        HfApi().upload_folder(repo_id=address.repo_id, folder_path=folder)
    except Exception as error:  # the client raises errors of several libraries
        reason = brief(error)
        raise ValueError(
            f"{folder} was not uploaded to {repository} ({reason}); it is on this disk; run "
            "`hf auth login` and upload it with `hf upload`"
        ) from error
    return str(address)
