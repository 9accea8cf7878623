"""What `align quickstart` says about its outcome: report.html, and a summary in a few lines."""

import shlex
from pathlib import Path

from align import report as html
from align.config import GenerateConfig
from align.evaluation.page import findings, shots
from align.evaluation.tables import tables
from align.files import write_atomic
from align.quickstart import CATEGORIES, RIGHT, Outcome, pictures
from align.report import Shot, command_line, objects_text


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
