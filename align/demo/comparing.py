"""One prompt by several methods at one budget, for the demo: `align compare`'s own methods."""

import functools
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from align.config.budget import parse_budget
from align.config.evaluate import CompareConfig
from align.demo.drawing import nar_pipeline
from align.demo.pictures import SLOT, Verdict, judge, pipeline, reward_of
from align.demo.safety import screened
from align.demo.streaming import stoppable, stream
from align.diffusion.denoisers import denoiser_module
from align.diffusion.prompt_limits import prompt_warnings
from align.evaluation.methods import Method, parse_methods, run
from align.evaluation.pricing import Task
from align.evaluation.spending import Spent

Report = Callable[["Compared | None"], None]


@dataclass(frozen=True)
class Entry:
    """One method's picture."""

    label: str
    image: Float[Tensor, "3 h w"]
    spent: Spent
    scores: dict[str, float]
    verdict: Verdict | None


@dataclass(frozen=True)
class Compared:
    """What a comparison has so far."""

    total: int
    """Methods."""
    entries: tuple[Entry, ...] = ()
    now: str = ""
    """The method at work."""
    warnings: list[str] = field(default_factory=list)


def compare_steps(config: CompareConfig, prompt: str) -> Generator[Compared | None, None, None]:
    """A picture by each method, one after the other, from the same seed.

    Closing the iterator stops the work within one pass of the model. Raises what the methods do.
    """
    return stream(functools.partial(_compare, config, prompt))


def _compare(config: CompareConfig, prompt: str, report: Report) -> None:
    methods = parse_methods(config.methods)
    with SLOT:
        report(None)
        reward = reward_of(config.reward or "")
        done = Compared(len(methods))
        for method in methods:
            report(Compared(done.total, done.entries, method.label, done.warnings))
            pipe, module = _model(config, method)
            warnings = done.warnings
            if method.nar is None:
                warnings = prompt_warnings(pipe, [prompt])
            task = Task(
                pipe, prompt, {}, config.seed, reward, config.weights,
                config.num_inference_steps, config.guidance_scale, batch_size=4,
                nar=method.nar is not None,
            )  # fmt: skip
            with stoppable(module, report):
                made = run(method, [task], [parse_budget(config.budget)])[0][0]
            entry = _entry(config, method, made, prompt, reward)
            done = Compared(done.total, (*done.entries, entry), "", warnings)
            report(done)


def _model(config: CompareConfig, method: Method) -> tuple[Any, Any]:
    """A method's pipeline, and the module whose passes it is made of."""
    if method.nar is not None:
        pipe = nar_pipeline(method.nar)
        return pipe, pipe.transformer.blocks[0]
    pipe = pipeline(config.model, method.loras)
    return pipe, denoiser_module(pipe)


@torch.no_grad()
def _entry(config: CompareConfig, method: Method, made: Any, prompt: str, reward: Any) -> Entry:
    image = made.image[None]
    terms = reward.terms(image, [prompt], [{}])
    scores = {name: float(score[0]) for name, score in terms.items()}
    verdicts = judge(method.nar or config.model, prompt, image)
    shown = image if method.nar else screened(config.model, image)[0]
    return Entry(method.label, shown[0], made.spent, scores, verdicts[0] if verdicts else None)
