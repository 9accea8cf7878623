"""Noise search for the demo: `align.optimize` itself, step by step, with its pictures on disk."""

import dataclasses
import functools
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from align.commands.optimize import picture_settings
from align.config.optimize import OptimizeConfig, OptimizeRunConfig
from align.demo.pictures import SLOT, facts_of, pipeline, reward_of, slug
from align.demo.safety import screened
from align.demo.streaming import stoppable, stream
from align.diffusion.denoisers import denoiser_module
from align.diffusion.prompt_limits import prompt_warnings
from align.noise_opt import optimize
from align.noise_opt.folder import save_noise
from align.noise_opt.records import OptimizeStep
from align.noise_opt.weights import Weighing, weigh
from align.rewards.facts import Fact
from align.runs.folder import save_image

PATH_SHOWN = 12  # pictures of the path
Report = Callable[["Found | None"], None]


@dataclass(frozen=True)
class Found:
    """What a search has found so far."""

    weighing: Weighing
    warnings: list[str]
    step: OptimizeStep | None = None
    initial: Path | None = None
    best: Path | None = None
    noise: Path | None = None
    path: tuple[tuple[Path, str], ...] = ()
    """Every new best as it came: (picture, its score)."""
    rows: tuple[tuple[int, str, float], ...] = ()
    """(images made, term, gain over the first picture), for the curves."""
    first: dict[str, float] = field(default_factory=dict)
    """Of the first picture: its scores by term, and its total under ""."""
    facts: tuple[tuple[Fact, ...], ...] = ()
    """Of the first picture and of the best one, where they are known."""


def search_steps(config: OptimizeRunConfig, folder: Path) -> Generator[Found | None, None, None]:
    """The best noise of one prompt, iteration by iteration; pictures go into the folder.

    None is yielded where an iteration takes long. Closing the iterator stops the search within
    one pass of the denoiser. Raises what `align optimize` raises.
    """
    return stream(functools.partial(_search, config, folder))


def _search(config: OptimizeRunConfig, folder: Path, report: Report) -> None:
    with SLOT:
        report(None)
        reward = reward_of(config.reward or "")
        prompt = config.prompt[0]
        weighing = weigh(reward, prompt, config.own("weights"))
        pipe = pipeline(config.model, config.lora)
        found = Found(weighing, prompt_warnings(pipe, [prompt]))
        report(found)
        names = [f.name for f in dataclasses.fields(OptimizeConfig)]
        settings = OptimizeConfig(**{name: getattr(config, name) for name in names})
        said = picture_settings(config, pipe)
        with stoppable(denoiser_module(pipe), report):
            for step in optimize(pipe, prompt, reward, settings):
                found = _grown(found, step, config, folder, said)
                report(found)


def _grown(
    found: Found, step: OptimizeStep, config: OptimizeRunConfig, folder: Path, said: dict[str, Any]
) -> Found:
    """What is known after a step; a new best is written with its noise."""
    prompt, name = config.prompt[0], slug(config.prompt[0])
    initial, first, facts, hidden = found.initial, found.first, found.facts, []
    if step.iteration == 0:
        initial = folder / f"{name}-seed-{config.seed}.png"
        shown, hidden = screened(config.model, step.images[:1])
        save_image(initial, shown[0], prompt=prompt, seed=config.seed, **said)
        first = first_scores(found.weighing, config, step)
        facts = tuple(facts_of(config.model, prompt, step.images[:1]))
    best, noise, path = found.best, found.noise, found.path
    if step.improved:
        facts = (*facts[:1], *facts_of(config.model, prompt, step.best_image[None]))
        best = folder / f"{name}-best-{step.iteration:04d}.png"
        noise = folder / f"{name}-noise-{step.iteration:04d}.safetensors"
        shown, more = screened(config.model, step.best_image[None])
        hidden = [*hidden, *more]
        save_image(best, shown[0], prompt=prompt, seed=config.seed, score=step.best_total, **said)
        save_noise(noise, step.best_noise, prompt=prompt, seed=config.seed)
        path = (*path, (best, f"{step.best_total:.3f}"))[-PATH_SHOWN:]
    warnings = [*dict.fromkeys([*found.warnings, *hidden])]
    return Found(
        found.weighing, warnings, step, initial, best, noise, path,
        (*found.rows, *gains(found.weighing, first, step)), first, facts,
    )  # fmt: skip


def first_scores(
    weighing: Weighing, config: OptimizeRunConfig, step: OptimizeStep
) -> dict[str, float]:
    """The scores of the search's first picture, which `align generate` makes too."""
    prompt = [config.prompt[0]]
    terms = weighing.objective.reward.terms(step.images[:1], prompt, [{}])
    scores = {name: float(score[0]) for name, score in terms.items()}
    return scores | {"": float(step.totals[0])}


def gains(
    weighing: Weighing, first: dict[str, float], step: OptimizeStep
) -> list[tuple[int, str, float]]:
    """How far the best picture is above the first one, by term; each in its own deviations where
    they are known, so that the terms share one scale."""
    scale = {part.name: part.std for part in weighing.objective.parts}
    rows = [
        (step.generator_forwards, name, (value - first[name]) / scale.get(name, 1.0))
        for name, value in step.best_terms.items()
    ]
    if len(rows) > 1:
        rows.append((step.generator_forwards, "weighted sum", step.best_total - first[""]))
    return rows
