"""`align quickstart`: the main jobs on the models inside, in minutes and without a download.

`align train` teaches a LoRA a style. `align compare` then draws prompts that no training saw, by
the base model, by that LoRA, by the LoRA that ships, by a search of the noise and by NAR, and
judges them by a reader that took no part in any of it. One page says what came out.
"""

import logging
import shlex
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float

from align.config.commands import GenerateConfig, QuickstartConfig
from align.config.evaluate import CompareConfig
from align.config.train import TrainConfig
from align.evaluation.page import findings, shots
from align.evaluation.statistics import Estimate, difference
from align.evaluation.tables import tables
from align.runs import page as html
from align.runs.files import write_atomic
from align.runs.folder import check_folder, open_run
from align.runs.page import Shot, command_line, objects_text
from align.runs.pictures import read_image

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
    outcome = run(config)
    write_report(outcome)
    return summary(outcome)


def run(config: QuickstartConfig) -> Outcome:
    """Everything but the report."""
    from align.alignprop.train import train
    from align.evaluation.page import write_reports
    from align.evaluation.run import do_run, make_plan
    from align.evaluation.spending import parse_budgets

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
    from align.diffusion.sample import generate
    from align.models.load import load_pipeline

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
    from align.models.load import embedded_models
    from align.models.lora_files import shipped_loras

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
    return torch.stack([read_image(file) for file in files])


def style(plan: Any, records: list[dict[str, Any]]) -> Style:
    """What the reader measures before (the first method) and after (the second)."""
    from align.scenes import measure_taste

    before, after = (measure_taste(pictures(plan, records, method)) for method in (0, 1))
    spread = float(before.value.std())
    rise = difference((before.value / spread).tolist(), (after.value / spread).tolist())
    return Style((float(before.radius.mean()), float(after.radius.mean())), rise)


def write_report(outcome: Outcome) -> Path:
    """Write report.html into the run's folder, everything inside it; returns its path."""
    path, tabled = outcome.folder / "report.html", tables(outcome.report)
    sections = [
        html.paragraph(style_line(outcome), "lead"),
        *before_and_after(outcome),
        html.heading("More pictures right: what to choose"),
        *map(html.paragraph, findings(outcome.report, "compare")),
        *(html.table(*tabled[name][:2]) for name in ("Scores", "Cost of a picture")),
        html.paragraph(
            "The first prompt of each category by every method, a fixed choice. Under each picture "
            "is what the reader sees in it. compare/report.html has everything else.",
            "note",
        ),
        html.pictures(shots(outcome.report, outcome.plan, outcome.records), width=150),
        html.heading("Reward during the training"),
        reward_curve(outcome),
        html.heading("Do it yourself"),
        html.code("\n\n".join(f"# {what}\n{line}" for what, line in commands(outcome).items())),
        html.heading("Details"),
        details(outcome),
    ]
    write_atomic(path, html.html_page("align quickstart", *sections))
    return path


def style_line(outcome: Outcome) -> str:
    """What the training did, in two sentences."""
    s, rise = outcome.style, outcome.style.rise
    exact = [one["overall"]["exact"]["mean"] for one in outcome.report["figures"][:2]]
    return (
        f"In {outcome.seconds['training']:.0f} seconds, {outcome.training.steps} updates of "
        f"{outcome.training.batch_size} pictures, a LoRA learned the style that the reward "
        f"scenes-taste likes: the mean radius of objects went from {s.radius[0]:.1f} to "
        f"{s.radius[1]:.1f} px, and the taste that a reader measures rose by {rise.mean:+.2f} of "
        f"its standard deviation ({rise.low:+.2f} to {rise.high:+.2f}; {rise.prompts} prompts "
        f"that it never saw). Exactly as asked were {exact[0]:.0%} before and {exact[1]:.0%} after."
    )


def before_and_after(outcome: Outcome) -> list[str]:
    """Two rows: the first prompt of each category before and after, from the same noises."""
    from align.scenes import read

    first: dict[str, int] = {}
    for index, record in enumerate(outcome.records):
        first.setdefault(record["category"], index)
    rows = []
    for method, name in enumerate(("before", "after")):
        images = pictures(outcome.plan, outcome.records, method)[[*first.values()]]
        row = [Shot(image, "", objects_text(read(image.numpy()))) for image in images]
        rows.append(html.pictures([(name, row)], width=100))
    prompts = "; ".join(outcome.records[index]["prompt"] for index in first.values())
    return [
        *rows,
        html.paragraph(
            "The first prompt of each category, the same noises before and after: a fixed choice, "
            f"not the best ones. From left to right: {prompts}.",
            "note",
        ),
    ]


def reward_curve(outcome: Outcome) -> str:
    """The mean reward of each update's pictures, as a moving mean."""
    updates = [record["step"] for record in outcome.metrics]
    rewards = [record["reward"] for record in outcome.metrics]
    figure = html.curve_plot(
        {"reward": (updates, rewards)}, xlabel="update", ylabel="mean reward of the batch", smooth=8
    )
    return html.plot(figure, f"reward from {rewards[0]:.3f} to {rewards[-1]:.3f}")


def summary(outcome: Outcome) -> str:
    """What is printed at the end."""
    lines = [style_line(outcome), *findings(outcome.report, "compare")]
    lines += [
        f"  report  {outcome.folder / 'report.html'}",
        f"  LoRA    {outcome.folder / 'train' / 'lora'}",
        "  next    align demo",
    ]
    return "\n".join(lines)


def commands(outcome: Outcome) -> dict[str, str]:
    """The commands that do each part again, by what they do."""
    prompt, seed = outcome.records[0]["prompt"], outcome.records[0]["results"][0]["seed"]
    steps = outcome.comparison.num_inference_steps
    guidance = outcome.comparison.guidance_scale
    assert steps is not None
    assert guidance is not None
    picture = {
        "prompt": (prompt,), "seed": seed, "num_inference_steps": steps, "guidance_scale": guidance
    }  # fmt: skip
    trained = (str(outcome.folder / "train"),)
    right = any(method.label == f"lora={RIGHT}" for method in outcome.plan.methods)
    search = ["--budget", outcome.comparison.budget, "--num-inference-steps", str(steps)]
    search += ["--guidance-scale", f"{guidance:g}"]
    return {
        "Train the LoRA": f"{command_line('train', outcome.training)} --out runs/my-lora",
        "A picture without it": command_line("generate", GenerateConfig(**picture)),
        "The same with it": command_line("generate", GenerateConfig(**picture, lora=trained)),
        **(
            {
                "The same with the LoRA that ships": command_line(
                    "generate", GenerateConfig(**picture, lora=(RIGHT,))
                )
            }
            if right
            else {}
        ),
        "Search its noise": shlex.join(["align", "optimize", prompt, *search]),
        "The same prompt by NAR": shlex.join(["align", "nar", "generate", prompt]),
        "The comparison": f"{command_line('compare', outcome.comparison)} --out runs/compare",
        "All rewards that can be named, and one of your own: f(images, prompts) -> scores": (
            "align rewards\nalign train --reward my_reward.py:f"
        ),
        "Look at it in a browser": "align demo",
    }


def details(outcome: Outcome) -> str:
    """Settings and times."""
    t, c = outcome.training, outcome.comparison
    settings = {
        "model": t.model,
        "reward": t.reward,
        "updates": t.steps,
        "pictures an update": t.batch_size,
        "learning rate": t.learning_rate,
        "LoRA rank": t.lora_rank,
        "prompts compared": f"{CATEGORIES * (c.per_category or 0)} of {c.prompts}",
        "denoising steps, guidance": f"{c.num_inference_steps}, {c.guidance_scale:g}",
        "budget of a search": c.budget,
        "seed": t.seed,
        **{f"time, {part}": f"{seconds:.0f} s" for part, seconds in outcome.seconds.items()},
    }
    return html.table(["setting", "value"], list(settings.items()))
