"""What `align quickstart` says about its outcome: report.html, and a summary in a few lines."""

import math
import shlex
from dataclasses import replace
from pathlib import Path

from jaxtyping import Float
from torch import Tensor

from align import report
from align.budget import parse_budget
from align.files import write_atomic
from align.quickstart import JUDGED_PROMPTS, Gain, Judgment, Outcome, picture_config, shown
from align.quickstart_parts import NAR, SEARCH, NarPictures
from align.report import Shot, command_line, objects_text

NAMES = {
    "exact": "verifier: exactly as asked",
    "partial": "verifier: share of the stated facts",
}


def write_report(outcome: Outcome) -> Path:
    """Write report.html into the run's folder, everything inside it; returns its path."""
    path = outcome.folder / "report.html"
    t, places = outcome.training, shown(outcome.judgments)
    sections = [
        report.paragraph(headline(outcome), "lead"),
        report.paragraph(
            f"A LoRA was trained on {t.model} by AlignProp: the reward {t.reward}, a small network "
            "that says how well a picture fits its prompt, was backpropagated through all "
            f"{t.num_inference_steps} denoising steps, {outcome.updates} updates of "
            f"{t.batch_size} pictures. The verifier, a program that reads pictures back into "
            "objects and took no part in the training, judged pictures of prompts that the "
            "training never saw, from the same noises before and after."
        ),
        report.heading("Gains"),
        gains_table(outcome),
        report.heading("Before and after"),
        report.paragraph(
            "The first prompts of each category with their first noise: a fixed choice, not the "
            "best ones. Under each picture is what the verifier sees in it.",
            "note",
        ),
        picture_pairs([outcome.judgments[i] for i in places], shown_images(outcome, places)),
        report.heading("Noise search: no training, a better picture"),
        report.paragraph(search_line(outcome)),
        picture_pairs(outcome.searched, outcome.searched_images),
        *nar_part(outcome),
        report.heading("Reward during the training"),
        reward_curve(outcome),
        report.heading("By category"),
        category_table(outcome),
        report.heading("Do it yourself"),
        report.code("\n\n".join(f"# {what}\n{line}" for what, line in commands(outcome).items())),
        report.heading("What to try next"),
        next_steps(),
        report.heading("Details"),
        details(outcome),
    ]
    write_atomic(path, report.html_page("align quickstart", *sections))
    return path


def headline(outcome: Outcome) -> str:
    """The main result in a sentence, whichever way it went."""
    g, minutes = outcome.gains["exact"], outcome.seconds["training"] / 60
    if g.low > 0:
        verdict = f"rose from {g.before:.1%} to {g.after:.1%}"
    elif g.high < 0:
        verdict = f"fell from {g.before:.1%} to {g.after:.1%}"
    else:
        verdict = f"went from {g.before:.1%} to {g.after:.1%}, too little to be told from chance"
    return (
        f"After {minutes:.1f} minutes of training, the share of pictures that show exactly what "
        f"their prompt asks for {verdict}: {interval(g, points=True)}."
    )


def interval(g: Gain, points: bool) -> str:
    """A gain with its interval and n; in percentage points or in the measure's own unit."""
    scale, unit, digits = (100, " points", 1) if points else (1, "", 3)
    numbers = [f"{scale * value:+.{digits}f}" for value in (g.difference, g.low, g.high)]
    ends = f"95 % interval {numbers[1]} to {numbers[2]}"
    if math.isinf(g.low):
        ends = "no interval, as every prompt has the same difference"
    return f"{numbers[0]}{unit} ({ends}; n = {g.prompts} prompts, {g.images} pictures)"


def summary(outcome: Outcome) -> str:
    """What is printed at the end."""
    minutes = sum(outcome.seconds.values()) / 60
    lines = [
        f"A LoRA for {outcome.training.model}, trained by {outcome.training.reward} in "
        f"{outcome.updates} updates ({outcome.seconds['training'] / 60:.1f} of {minutes:.1f} "
        f"minutes). On prompts it never saw ({JUDGED_PROMPTS}), the same noises:",
    ]
    for name, g in outcome.gains.items():
        points = name in NAMES
        before, after = (f"{v:.1%}" if points else f"{v:.3f}" for v in (g.before, g.after))
        lines.append(f"  {NAMES.get(name, f'{name} (trained on)')}: {before} -> {after}")
        lines.append(f"    {interval(g, points)}")
    found = outcome.searched_gains["exact"]
    lines += [
        f"Noise search without a LoRA, {images_text()} a prompt, by the default rewards:",
        f"  {NAMES['exact']}: {found.before:.1%} -> {found.after:.1%}",
        f"    {interval(found, points=True)}",
    ]
    lines += [f"{nar_line(outcome.nar)}."] if outcome.nar else []
    lines += [
        f"  report  {outcome.folder / 'report.html'}",
        f"  LoRA    {outcome.folder / 'train' / 'lora'}",
        "  next    align demo",
    ]
    return "\n".join(lines)


def gains_table(outcome: Outcome) -> str:
    """All measures, before and after."""
    rows = []
    for name, g in outcome.gains.items():
        points = name in NAMES
        form = "{:.1%}" if points else "{:.3f}"
        scale, digits = (100, 1) if points else (1, 3)
        low, high = (f"{scale * v:+.{digits}f}" for v in (g.low, g.high))
        rows.append(
            [
                NAMES.get(name, f"{name} (trained on)"),
                form.format(g.before),
                form.format(g.after),
                f"{scale * g.difference:+.{digits}f}",
                "unknown" if math.isinf(g.low) else f"{low} to {high}",
            ]
        )
    g = outcome.gains["exact"]
    caption = (
        f"Paired by prompt and noise, {g.prompts} prompts of {JUDGED_PROMPTS}, "
        f"{g.images} pictures; gains of the verifier in percentage points."
    )
    return report.table(["measure", "before", "after", "gain", "95 % interval"], rows, caption)


def shown_images(outcome: Outcome, places: list[int]) -> dict[str, Float[Tensor, "b 3 h w"]]:
    """The judged pictures at some places, before and after."""
    return {when: images[places] for when, images in outcome.images.items()}


def picture_pairs(judgments: list[Judgment], images: dict[str, Float[Tensor, "b 3 h w"]]) -> str:
    """Pictures before and after, with the verdict under each."""
    from align.scenes import read

    groups = []
    for index, judgment in enumerate(judgments):
        scores = {"before": judgment.before, "after": judgment.after}
        shots = [
            Shot(
                pictures[index],
                when,
                objects_text(read(pictures[index].numpy())),
                good=bool(scores[when]["exact"]),
            )
            for when, pictures in images.items()
        ]
        groups.append((judgment.prompt, shots))
    return report.pictures(groups, width=150)


def images_text() -> str:
    """The budget of the noise search in words."""
    return f"{parse_budget(SEARCH.budget or '').amount:g} images"


def search_line(outcome: Outcome) -> str:
    """What the noise search reached, in two sentences."""
    g, seconds = outcome.searched_gains["exact"], outcome.seconds["noise search"]
    return (
        f"For {g.prompts} prompts the noise was searched by the embedded rewards, "
        f"{images_text()} a prompt, {seconds / g.prompts:.1f} s each; the model stays as it is. "
        f"Exactly as asked, by the verifier: {g.before:.1%} of the first noises' pictures, "
        f"{g.after:.1%} of the best ones found: {interval(g, points=True)}."
    )


def nar_line(nar: NarPictures) -> str:
    """What NAR drew, how fast and how well."""
    count = len(nar.images)
    return (
        f"{NAR} draws {nar.tokens} tokens a picture in {nar.passes} passes: {count} pictures in "
        f"{nar.seconds:.1f} s, {sum(nar.exact)} of them exactly as asked (prompts of combinations "
        "that it never saw)"
    )


def nar_part(outcome: Outcome) -> list[str]:
    """The section on NAR; nothing where its model is not installed."""
    from align.scenes import read

    nar = outcome.nar
    if nar is None:
        return []
    groups = [
        (j.prompt, [Shot(image, "NAR", objects_text(read(image.numpy())), good=right)])
        for j, image, right in zip(outcome.searched, nar.images, nar.exact, strict=True)
    ]
    return [
        report.heading("NAR: a picture by wavefronts of tokens"),
        report.paragraph(f"{nar_line(nar)}."),
        report.pictures(groups, width=150),
    ]


def reward_curve(outcome: Outcome) -> str:
    """The mean reward of each update's pictures."""
    updates = [record["step"] for record in outcome.records]
    rewards = [record["reward"] for record in outcome.records]
    name = outcome.training.reward
    figure = report.curve_plot(
        {name: (updates, rewards)}, xlabel="update", ylabel=f"mean {name} of the batch", smooth=8
    )
    return report.plot(figure, f"{name} from {rewards[0]:.3f} to {rewards[-1]:.3f}")


def category_table(outcome: Outcome) -> str:
    """Exact pictures by category, as counts: few of each, so without intervals."""
    rows = []
    for category in dict.fromkeys(j.category for j in outcome.judgments):
        mine = [j for j in outcome.judgments if j.category == category]
        counts = [sum(scores["exact"] for scores in side) for side in _sides(mine)]
        rows.append([category, len(mine), *(f"{count:.0f}" for count in counts)])
    return report.table(
        ["category", "pictures", "exact before", "exact after"],
        rows,
        "Few pictures each: this shows where to look, it does not prove a difference.",
    )


def _sides(judgments: list) -> tuple[list, list]:
    return [j.before for j in judgments], [j.after for j in judgments]


def commands(outcome: Outcome) -> dict[str, str]:
    """The commands that reproduce each part, by what they do."""
    lora = shlex.quote(str(outcome.folder / "train"))
    training = replace(outcome.training, steps=outcome.updates)
    first = shown(outcome.judgments)[0]
    before, after = (picture_config(outcome, first, when) for when in (False, True))
    return {
        "Train the LoRA": f"{command_line('train', training)} --out runs/my-lora",
        "A picture without it": command_line("generate", before),
        "The same with it": command_line("generate", after),
        "Search the noise of its prompt": command_line(
            "optimize",
            replace(SEARCH, prompt=(outcome.searched[0].prompt,), seed=outcome.searched[0].seed),
        ),
        "The same prompt by NAR": f"align nar generate {shlex.quote(outcome.searched[0].prompt)}",
        "Mix half of it in": f"align generate 'two green stars' --lora {lora}=0.5",
        "Look at it in a browser": "align demo",
    }


def next_steps() -> str:
    """Things to try."""
    return report.code(
        "# all rewards that can be named, and a longer training by two of them\n"
        "align rewards\n"
        "align train --reward scenes-clip=1,jpeg=0.1 --steps 300\n\n"
        "# a reward of your own: f(images, prompts) -> scores\n"
        "align train --reward my_reward.py:f\n\n"
        "# your own Stable Diffusion (a GPU helps)\n"
        "align train --model path/to/model --prompts animals --reward jpeg"
    )


def details(outcome: Outcome) -> str:
    """Settings and times."""
    t = outcome.training
    settings = {
        "model": t.model,
        "reward": t.reward,
        "training prompts": t.prompts,
        "updates": outcome.updates,
        "pictures per update": t.batch_size,
        "learning rate": t.learning_rate,
        "LoRA rank": t.lora_rank,
        "denoising steps": t.num_inference_steps,
        "guidance": t.guidance_scale,
        "gradient through": f"{t.grad_window} steps",
        "seed": t.seed,
        **{f"time, {part}": f"{seconds:.0f} s" for part, seconds in outcome.seconds.items()},
    }
    return report.table(["setting", "value"], list(settings.items()))
