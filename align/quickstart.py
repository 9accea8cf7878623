"""`align quickstart`: the main job on the embedded models, in minutes and without a download.

Pictures by the base model on fixed noises; for some of their prompts a search of the noise, and a
picture by NAR; a LoRA trained by a reward and the same pictures again; and a judge that took no
part in any of it.
"""

import logging
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from align.config import GenerateConfig, QuickstartConfig, TrainConfig
from align.evaluation.statistics import BOUNDS, difference
from align.models import load_pipeline
from align.prompts import load_prompts
from align.quickstart_parts import NarPictures, draw_nar, search_noise
from align.rewards import load_reward
from align.run import check_folder, log_metrics, open_run, save_image
from align.sample import generate
from align.scenes import verify

log = logging.getLogger(__name__)

# ---- what is done; every figure of it is quoted in the report ----
TRAINING = TrainConfig(
    model="embedded/scenes",
    reward="scenes-clip",
    prompts="scenes-heldout-a",
    preset="embedded",
    sample_every=0,
    checkpoint_every=0,
    tracker="none",
)
JUDGED_PROMPTS = "scenes-heldout-b"  # unseen in training
JUDGED_PER_CATEGORY = 8  # prompts: the first of each category
NOISES = 3  # pictures of each prompt
FIRST_SEED = 1000  # noise i is that of this seed + i
SHOWN_PER_CATEGORY = 2  # the first prompts of each category, with their first noise
SEARCHED_PER_CATEGORY = 2  # prompts whose noise is searched, and that NAR draws: the first ones
RESERVE = 0.3  # minutes kept for the reports
LEAST_UPDATES = 10  # of the training a minute of `--minutes`, however slow the machine is
OUT = Path("runs/quickstart")


@dataclass(frozen=True)
class Judgment:
    """One prompt and noise, judged with and without the LoRA."""

    prompt: str
    category: str
    seed: int
    before: dict[str, float]
    """Score by measure: `exact`, `partial` and the trained reward."""
    after: dict[str, float]


@dataclass(frozen=True)
class Gain:
    """A paired comparison: means, mean difference, its 95 % interval."""

    before: float
    after: float
    difference: float
    low: float
    high: float
    prompts: int
    images: int


@dataclass(frozen=True)
class Outcome:
    """All that the report tells."""

    folder: Path
    training: TrainConfig
    updates: int
    records: list[dict[str, Any]]
    """The training's metrics, one record an update."""
    judgments: list[Judgment]
    images: dict[str, Float[Tensor, "b 3 h w"]]
    """`before` and `after`, in the order of the judgments."""
    gains: dict[str, Gain]
    """By measure."""
    searched: list[Judgment]
    """The first noise of each prompt against the best that the search found."""
    searched_images: dict[str, Float[Tensor, "b 3 h w"]]
    searched_gains: dict[str, Gain]
    nar: NarPictures | None
    """Of the searched prompts; None where the model is not installed."""
    seconds: dict[str, float]
    """By part."""


def quickstart(config: QuickstartConfig) -> str:
    """Do the job, write report.html into the run's folder and return a summary in a few lines.

    Raises ValueError where `out` is taken, FileNotFoundError where the embedded model is missing.
    """
    from align.quickstart_report import summary, write_report

    outcome = run(config)
    write_report(outcome)
    return summary(outcome)


def run(config: QuickstartConfig) -> Outcome:
    """Everything but the report."""
    from align.train import train

    started = time.monotonic()
    check_folder(config.out, config.overwrite)
    pipe = load_pipeline(TRAINING.model, device=config.device)
    folder = open_folder(config)
    prompts, categories, seeds = judged_prompts(config.seed)
    log.info("1/5 %d pictures of %d prompts by the base model", len(prompts), len(set(prompts)))
    before = draw(pipe, prompts, seeds)
    scores_before = score(prompts, before, config.device)
    drawn = time.monotonic()

    some = first_of_each(categories, seeds, SEARCHED_PER_CATEGORY)
    few = [prompts[i] for i in some]
    log.info("2/5 searching the noise of %d prompts", len(few))
    found = search_noise(pipe, few, seeds[0], config.device)
    searched_images = {"before": found.before, "after": found.after}
    both = [score(few, images, config.device) for images in searched_images.values()]
    kinds = [categories[i] for i in some]
    rows = zip(few, kinds, [seeds[0]] * len(few), *both, strict=True)
    searched = [Judgment(*row) for row in rows]
    done_searching = time.monotonic()
    log.info("3/5 a picture of each by NAR")
    nar = draw_nar(few, [seeds[0]] * len(few), config.device)
    begun = time.monotonic()

    # The pictures after will take as long as those before took on this machine.
    end = started + 60 * (config.minutes - RESERVE) - (drawn - started)
    training = training_config(config, folder)
    minutes, least = max(end - begun, 0) / 60, least_updates(config.minutes)
    log.info("4/5 training a LoRA by %s, %.1f minutes for it", training.reward, minutes)
    result = train(
        training, on_step=lambda record: record["step"] >= least and time.monotonic() > end
    )
    trained = time.monotonic()

    from align.lora import load_lora

    log.info("5/5 the same pictures with the LoRA")
    load_lora(pipe, str(result.lora))
    after = draw(pipe, prompts, seeds)
    scores_after = score(prompts, after, config.device)
    rows = zip(prompts, categories, seeds, scores_before, scores_after, strict=True)
    judgments = [Judgment(*row) for row in rows]
    for judgment in judgments:
        log_metrics(folder, **vars(judgment))
    outcome = Outcome(
        folder=folder,
        training=training,
        updates=result.steps,
        records=result.metrics,
        judgments=judgments,
        images={"before": before, "after": after},
        gains={name: gain(judgments, name, config.seed) for name in judgments[0].before},
        searched=searched,
        searched_images=searched_images,
        searched_gains={name: gain(searched, name, config.seed) for name in searched[0].before},
        nar=nar,
        seconds={
            "pictures before, judging": drawn - started,
            "noise search": done_searching - drawn,
            "NAR, loading included": begun - done_searching,
            "training": trained - begun,
            "pictures after, judging": time.monotonic() - trained,
        },
    )
    save_pictures(outcome, pipe)
    return outcome


def least_updates(minutes: float) -> int:
    """Updates that are made even when the time is over: a busy machine takes longer instead."""
    return min(math.ceil(LEAST_UPDATES * minutes), TRAINING.steps)


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


def judged_prompts(seed: int) -> tuple[list[str], list[str], list[int]]:
    """Prompts, their categories and noise seeds: the first prompts of each category, each with
    the same noises."""
    loaded = load_prompts(JUDGED_PROMPTS)
    rows: dict[str, list[str]] = {}
    for prompt, metadata in zip(loaded.prompts, loaded.metadata, strict=True):
        rows.setdefault(metadata["category"], []).append(prompt)
    chosen = [(p, c) for c, ps in rows.items() for p in ps[:JUDGED_PER_CATEGORY]]
    triples = [(p, c, FIRST_SEED + seed + i) for p, c in chosen for i in range(NOISES)]
    prompts, categories, seeds = zip(*triples, strict=True)
    return list(prompts), list(categories), list(seeds)


def training_config(config: QuickstartConfig, folder: Path) -> TrainConfig:
    """TRAINING, with this run's seed and place."""
    return replace(TRAINING, seed=config.seed, device=config.device, out=str(folder / "train"))


@torch.no_grad()
def draw(
    pipe: Any, prompts: Sequence[str], seeds: Sequence[int], batch: int = 12
) -> Float[Tensor, "b 3 h w"]:
    """One picture per prompt from the noise of its seed, sampled as in the training."""
    from tqdm import tqdm

    parts = []
    with tqdm(total=len(prompts), unit="image") as progress:
        for start in range(0, len(prompts), batch):
            part = slice(start, start + batch)
            images = generate(
                pipe,
                prompts[part],
                generator=[torch.Generator().manual_seed(seed) for seed in seeds[part]],
                num_inference_steps=TRAINING.num_inference_steps,
                guidance_scale=TRAINING.guidance_scale,
            )
            parts.append(images.cpu())
            progress.update(len(images))
    return torch.cat(parts)


@torch.no_grad()
def score(
    prompts: list[str], images: Float[Tensor, "b 3 h w"], device: str | None = None
) -> list[dict[str, float]]:
    """Every picture's scores by the verifier and by the trained reward."""
    reward = load_reward(TRAINING.reward, device)
    exact, partial = verify(prompts, images)
    columns = {"exact": exact, "partial": partial, TRAINING.reward: reward(images, prompts)}
    rows = zip(*(column.tolist() for column in columns.values()), strict=True)
    return [dict(zip(columns, row, strict=True)) for row in rows]


def gain(judgments: Sequence[Judgment], measure: str, seed: int = 0) -> Gain:
    """How much a measure rose, paired by prompt and noise; the interval is that of evaluations,
    over prompts, as the pictures of a prompt are not independent."""
    rows: dict[str, list[tuple[float, float]]] = {}
    for j in judgments:
        rows.setdefault(j.prompt, []).append((j.before[measure], j.after[measure]))
    before, after = zip(*(np.mean(row, axis=0).tolist() for row in rows.values()), strict=True)
    found = difference(before, after, bounds=BOUNDS.get(measure), seed=seed)
    return Gain(
        before=float(np.mean(before)),
        after=float(np.mean(after)),
        difference=found.mean,
        low=found.low,
        high=found.high,
        prompts=len(rows),
        images=len(judgments),
    )


def shown(judgments: Sequence[Judgment]) -> list[int]:
    """Indices of the pictures that the report shows: a fixed choice, not the best ones."""
    categories, seeds = [j.category for j in judgments], [j.seed for j in judgments]
    return first_of_each(categories, seeds, SHOWN_PER_CATEGORY)


def first_of_each(categories: Sequence[str], seeds: Sequence[int], count: int) -> list[int]:
    """Indices of each category's first prompts, with their first noise."""
    chosen: dict[str, list[int]] = {}
    for index, (category, seed) in enumerate(zip(categories, seeds, strict=True)):
        if seed == seeds[0]:
            chosen.setdefault(category, []).append(index)
    return [index for indices in chosen.values() for index in indices[:count]]


def picture_config(outcome: Outcome, index: int, after: bool) -> GenerateConfig:
    """The `align generate` settings that give a judged picture again."""
    judgment = outcome.judgments[index]
    return GenerateConfig(
        prompt=(judgment.prompt,),
        lora=(str(outcome.folder / "train"),) if after else (),
        seed=judgment.seed,
        num_inference_steps=TRAINING.num_inference_steps,
        guidance_scale=TRAINING.guidance_scale,
    )


def save_pictures(outcome: Outcome, pipe: Any) -> None:
    """The shown pictures as `images/CATEGORY-N-before.png` and `-after.png`."""
    from align.commands import picture_settings

    numbers: dict[str, int] = {}
    for index in shown(outcome.judgments):
        judgment = outcome.judgments[index]
        number = numbers[judgment.category] = numbers.get(judgment.category, 0) + 1
        for when, images in outcome.images.items():
            settings = picture_settings(picture_config(outcome, index, when == "after"), pipe)
            save_image(
                outcome.folder / "images" / f"{judgment.category}-{number}-{when}.png",
                images[index],
                prompt=judgment.prompt,
                seed=judgment.seed,
                **settings,
            )
