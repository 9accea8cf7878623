"""What a finished run says about itself: report.json, the LoRA's model card, the upload."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from align.config.train import METHODS, TrainConfig
from align.models.processes import is_first
from align.runs.files import brief, write_atomic, write_json
from align.runs.folder import read_metrics
from align.training.judge import not_held_out
from align.training.pictures import PICTURES
from align.training.runs import Run

PAIR = ("before.png", "after.png")


def write_report(
    session: Run, after: dict[str, float], card: Callable[[Any, dict[str, Any]], str]
) -> dict[str, Any]:
    """Write report.json and the model card, upload where asked; returns the report.

    `after` are the mean scores of the fixed pictures by the trained model, by reward term;
    `card(config, report)` is the text of the LoRA's card.
    """
    c, records = session.config, read_metrics(session.folder)
    last = session.course.get("last")  # judgment, of the weights that are saved
    report: dict[str, Any] = {
        "steps": session.done,
        "scheduler": type(session.pipe.scheduler).__name__,
        "pictures": {"before": session.course.get("pictures", {}), "after": after},
        "seconds": sum(record["seconds"] for record in records),
        "warnings": [last["warning"]] if last and "warning" in last else [],
    }
    if last:
        fault = not_held_out(c)
        report["warnings"] = [*([fault] if fault else []), *report["warnings"]]
        base = session.course["base"]
        report["judge"] = {
            "before": sum(base["judge"]) / len(base["judge"]),
            "after": last["judge"],
            "best": session.course["score"],
            "best_step": session.course["step"],
            "diversity_before": base["diversity"],
            "diversity_after": last["diversity"],
            "held_out": fault is None,
        }
    write_json(session.folder / "report.json", report)
    for name in PAIR:
        picture = (session.folder / "images" / name).read_bytes()
        write_atomic(session.folder / "lora" / name, picture)
    write_atomic(session.folder / "lora" / "README.md", card(c, report))
    if c.push_to_hub:
        push_to_hub(session.folder / "lora", c.push_to_hub)
    return report


def model_card(config: TrainConfig, report: dict[str, Any]) -> str:
    """A Hub model card: how to load the LoRA, its training and figures, in Markdown."""
    c = config
    on_hub = not c.model.startswith(("embedded/", ".", "/", "~")) and c.model.count("/") == 1
    front = ["---", *([f"base_model: {c.model}"] if on_hub else []), "library_name: diffusers"]
    front += ["tags:", "- lora", "- text-to-image", "- reward-fine-tuning", "---", ""]
    settings = {
        "model": c.model,
        "reward": c.reward,
        "prompts": c.prompts or "the model's default set",
        "updates": report["steps"],
        "images per update": c.batch_size,
        "learning rate": f"{c.learning_rate:g} ({c.lr_schedule})",
        "LoRA": f"rank {c.lora_rank}, alpha {c.lora_alpha or c.lora_rank:g}",
        "sampling": f"{report['scheduler']}, {c.num_inference_steps} steps, "
        f"guidance {c.guidance_scale:g}" + (f", eta {c.eta:g}" if c.eta else ""),
        **how_compared(c),
        "distance to the base": f"weight {c.kl_weight:g}",
        "seed": c.seed,
    }
    lines = [
        *front,
        f"# A LoRA that raises {c.reward}",
        "",
        f"Trained from {c.model} with {METHODS[c.method].does}.",
        "",
        "```python",
        f'pipe = DiffusionPipeline.from_pretrained("{c.model}")',
        f'pipe.load_lora_weights("{c.push_to_hub or "path/to/this/folder"}")',
        "```",
        "",
        "| setting | value |",
        "| --- | --- |",
        *(f"| {name} | {value} |" for name, value in settings.items()),
        "",
        "## Figures",
        "",
        *figures(report),
    ]
    return "\n".join(lines) + "\n"


def how_compared(c: TrainConfig) -> dict[str, Any]:
    """The settings that only the run's method has."""
    if METHODS[c.method].through_sampler:
        return {"gradient window": c.grad_window}
    if not METHODS[c.method].compares:
        return {}
    return {"images compared": c.group_size, "timesteps a pair": c.pair_timesteps, "beta": c.beta}


def figures(report: dict[str, Any]) -> list[str]:
    """The card's lines of figures and pictures."""
    before, after = report["pictures"]["before"], report["pictures"]["after"]
    rows = [(f"{n} (fixed training pictures)", before[n], after[n]) for n in before if n in after]
    if "judge" in report:
        j = report["judge"]
        rows.append((judge_name(j), j["before"], j["after"]))
        rows.append(("diversity", j["diversity_before"], j["diversity_after"]))
    lines = ["| measure | base | trained |", "| --- | --- | --- |"]
    lines += [f"| {name} | {old:.4g} | {new:.4g} |" for name, old, new in rows]
    if "judge" in report:
        best, step = report["judge"]["best"], report["judge"]["best_step"]
        lines += ["", f"The judge's best was {best:.4g} at update {step}."]
    lines += [f"\nWarning: {warning}." for warning in report["warnings"]]
    lines += ["", "The same prompts and noises, base and trained:", ""]
    return [*lines, *(f"![{name.removesuffix('.png')}]({name})" for name in PAIR)]


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
