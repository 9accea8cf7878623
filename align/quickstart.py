"""`align quickstart`: the main jobs on the models inside, in minutes and without a download.

`align train` teaches a LoRA a style. `align compare` then draws prompts that no training saw, by
the base model, by that LoRA, by the LoRA that ships, by a search of the noise and by NAR, and
judges them by a reader that took no part in any of it. One page says what came out.
"""

import logging
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image

from align.config import QuickstartConfig, TrainConfig
from align.evaluation.config import CompareConfig
from align.evaluation.statistics import Estimate, difference
from align.run import check_folder, open_run

log = logging.getLogger(__name__)

# ---- what is done on a machine fast enough for it; the report quotes every figure of it ----
TRAINING = TrainConfig(
    model="embedded/scenes", preset="taste", sample_every=0, checkpoint_every=0, tracker="none"
)
COMPARISON = CompareConfig(
    model="embedded/scenes",
    prompts="scenes-heldout-b",  # unseen in training
    per_category=3,
    budget="48nfe",
    num_inference_steps=8,
    guidance_scale=3.0,
)
RIGHT = "embedded/scenes-right"
NAR = "embedded/nar-scenes"
# What is left of it on however slow a machine.
LEAST_UPDATES = 20
LEAST_PER_CATEGORY = 1
# The time of all that, in times of drawing one picture by the base model.
PICTURES_AN_UPDATE = 17.0
PICTURES_A_PROMPT = 10.0
CATEGORIES = 9
OUT = Path("runs/quickstart")


@dataclass(frozen=True)
class Style:
    """What the training did to the base's pictures, each measure paired by prompt."""

    radius: tuple[float, float]
    """Mean radius of the objects in pixels, before and after."""
    rise: Estimate
    """Of the value of `align.scenes.measure_taste`, in its standard deviations before."""


@dataclass(frozen=True)
class Outcome:
    """All that the report tells."""

    folder: Path
    training: TrainConfig
    comparison: CompareConfig
    metrics: list[dict[str, Any]]
    """The training's, one record an update."""
    plan: Any
    records: list[dict[str, Any]]
    report: dict[str, Any]
    """Of the comparison: its plan, its records a prompt, its report.json."""
    style: Style
    seconds: dict[str, float]
    """By part."""


def quickstart(config: QuickstartConfig) -> str:
    """Do the jobs, write report.html into the run's folder and return a summary in a few lines.

    Raises ValueError where `out` is taken, FileNotFoundError where the embedded model is missing.
    """
    from align.quickstart_report import summary, write_report

    outcome = run(config)
    write_report(outcome)
    return summary(outcome)


def run(config: QuickstartConfig) -> Outcome:
    """Everything but the report."""
    from align.evaluation.page import write_reports
    from align.evaluation.run import do_run, make_plan
    from align.evaluation.spending import parse_budgets
    from align.train import train

    check_folder(config.out, config.overwrite)
    begun = time.monotonic()
    updates, prompts = work(config, seconds_a_picture(config.device))
    folder = open_folder(config)
    place = {"device": config.device, "seed": config.seed}
    training = replace(TRAINING, steps=updates, out=str(folder / "train"), **place)
    log.info("1/2 training a LoRA by %s, %d updates", training.reward, updates)
    started = time.monotonic()
    result = train(training)
    trained = time.monotonic()
    comparison = replace(
        COMPARISON,
        methods=",".join(methods(folder)),
        per_category=prompts,
        out=str(folder / "compare"),
        **place,
    )
    log.info("2/2 %d prompts by %s", CATEGORIES * prompts, comparison.methods)
    plan = make_plan(comparison, "compare", [*parse_budgets(comparison.budget)], 1)
    records = do_run(plan)
    assert records is not None  # no other process shares the folder
    report = write_reports(plan, records)
    return Outcome(
        folder=folder,
        training=training,
        comparison=comparison,
        metrics=result.metrics,
        plan=plan,
        records=records,
        report=report,
        style=style(plan, records),
        seconds={
            "a first look at the machine": started - begun,
            "training": trained - started,
            "comparison": time.monotonic() - trained,
        },
    )


def seconds_a_picture(device: str | None) -> float:
    """How long the base model takes for a picture here and now."""
    from align.models import load_pipeline
    from align.sample import generate

    pipe = load_pipeline(TRAINING.model, device=device)
    for count in (1, 4):  # the first one warms up
        started = time.monotonic()
        with torch.no_grad():
            generate(pipe, ["two green stars"] * count, num_inference_steps=8, guidance_scale=3.0)
    return (time.monotonic() - started) / count


def work(config: QuickstartConfig, seconds: float) -> tuple[int, int]:
    """(updates, prompts a category) that fit into the minutes where a picture takes `seconds`;
    at least LEAST_UPDATES and LEAST_PER_CATEGORY."""
    per_category = COMPARISON.per_category or 1
    whole = TRAINING.steps * PICTURES_AN_UPDATE + CATEGORIES * per_category * PICTURES_A_PROMPT
    share = min(1.0, 60 * config.minutes / (seconds * whole))
    if share < 1:
        log.info(
            "a picture takes %.2f s here, so %.0f %% of the usual work is done",
            seconds,
            100 * share,
        )
    updates = max(LEAST_UPDATES, int(share * TRAINING.steps))
    return min(updates, TRAINING.steps), max(LEAST_PER_CATEGORY, int(share * per_category))


def methods(folder: Path) -> list[str]:
    """What is compared; models and LoRAs only that this installation has."""
    from align.lora_files import shipped_loras
    from align.models import embedded_models

    right = [f"lora={RIGHT}"] if RIGHT in shipped_loras() else []
    nar = ["nar"] if NAR in embedded_models() else []
    return ["base", f"lora={folder / 'train'}", *right, "carinox", *nar]


def open_folder(config: QuickstartConfig) -> Path:
    """The run's folder; a former quickstart in the usual place is moved aside, not deleted."""
    if config.out is None and OUT.is_dir() and any(OUT.iterdir()):
        stamp = time.strftime("%Y%m%d-%H%M%S", time.localtime(OUT.stat().st_mtime))
        aside = OUT.with_name(f"{OUT.name}-{stamp}")
        if aside.exists():
            aside = OUT.with_name(f"{OUT.name}-{stamp}-{time.time_ns()}")
        OUT.rename(aside)
        log.info("the former quickstart is now %s", aside)
    return open_run(config.out or OUT, config, config.overwrite, command="quickstart")


def pictures(
    plan: Any, records: list[dict[str, Any]], method: int
) -> Float[torch.Tensor, "b 3 h w"]:
    """The picture of each prompt by the method of this number."""
    from align.evaluation.summary import results_of

    label, budget = plan.methods[method].label, str(plan.budgets[0])
    files = [plan.folder / results_of(record, label, budget)[0]["image"] for record in records]
    arrays = [np.array(Image.open(file).convert("RGB")) for file in files]
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).float() / 255


def style(plan: Any, records: list[dict[str, Any]]) -> Style:
    """What the reader measures before (the first method) and after (the second)."""
    from align.scenes import measure_taste

    before, after = (measure_taste(pictures(plan, records, method)) for method in (0, 1))
    spread = float(before.value.std())
    rise = difference((before.value / spread).tolist(), (after.value / spread).tolist())
    return Style((float(before.radius.mean()), float(after.radius.mean())), rise)
