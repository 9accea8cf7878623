"""What a task is, what a picture of it costs, and so what a budget pays for."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from align.config.budget import Budget, Purse
from align.config.optimize import OptimizeConfig
from align.diffusion.denoisers import default_steps
from align.diffusion.sample import candidate_seeds, generate, make_noise, past_the_noise
from align.evaluation.nar_methods import draw_nar, nar_passes
from align.evaluation.spending import seconds_of
from align.noise_opt.evaluate import Evaluator
from align.noise_opt.objective import Objective
from align.noise_opt.paint import make_painter
from align.noise_opt.search import measure_backward_cost
from align.noise_opt.weights import weigh
from align.rewards.reward import Reward

BON_DEFAULT = 16


@dataclass(frozen=True)
class Task:
    """One picture to be made for one prompt."""

    pipe: Any
    prompt: str
    metadata: dict[str, Any]
    seed: int
    reward: Reward | None
    weights: str | None = None
    """Of the reward's terms; None: by category, but for the papers' methods uniform."""
    num_inference_steps: int | None = None
    guidance_scale: float | None = None
    batch_size: int = 8
    costs: "Costs | None" = None
    nar: bool = False
    """Whether `pipe` is a NARPipeline."""


@dataclass(frozen=True)
class Costs:
    """Measured once a run, so that budgets mean the same for every prompt and process."""

    seconds: float
    """For one picture without gradient, the reward's scores included."""
    backward: float | None
    """Forwards that a backward pass counts as; None where no method makes one."""
    nar_seconds: float | None = None
    """The same as `seconds` for a picture of NAR; None where no method draws by it."""
    score: float = 0.0
    """Of `seconds`, those of the scores."""
    alone: float = 0.0
    """Seconds for one picture without gradient that is drawn alone, as gradients are taken."""
    slope: float = 0.0
    """Seconds more for a picture with gradient, beside the generator's backward pass."""


@torch.no_grad()
def draw(
    task: Task, seeds: Sequence[int], sampler_seeds: Sequence[int]
) -> Float[Tensor, "b 3 h w"]:
    """A picture from the noise of each seed; what a sampler draws besides is of its own seed."""
    if task.nar:
        return draw_nar(task.pipe, task.prompt, seeds)
    return generate(
        task.pipe,
        [task.prompt] * len(seeds),
        latents=make_noise(task.pipe, seeds),
        generator=past_the_noise(task.pipe, sampler_seeds),
        num_inference_steps=task.num_inference_steps,
        guidance_scale=task.guidance_scale,
    )


@torch.no_grad()
def score(task: Task, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, " b"]:
    """What the search maximizes, of pictures of the task's prompt."""
    assert task.reward is not None  # checked before the run: a searching method has one
    rows = len(images)
    terms = task.reward.terms(images, [task.prompt] * rows, [task.metadata] * rows)
    return weigh(task.reward, task.prompt, task.weights or "category").objective.total(terms)


def candidates(budget: Budget | None, task: Task, count: int | None) -> int:
    """How many candidates a budget pays for; at least one, as a picture has to be made."""
    if budget is None or count is not None:
        return count or BON_DEFAULT
    if budget.unit == "images":
        price = 1.0
    elif budget.unit == "nfe":
        price = _steps(task)
    else:
        assert task.costs is not None  # measured before the run where a budget needs it
        price = task.costs.nar_seconds if task.nar else task.costs.seconds
        assert price is not None  # measured where a method draws by NAR
    return max(1, int(budget.amount / price + 1e-9))


def _steps(task: Task) -> int:
    return (
        nar_passes(task.pipe) if task.nar else task.num_inference_steps or default_steps(task.pipe)
    )


def measure_costs(task: Task, gradients: bool) -> Costs:
    """What pictures cost in this run, and gradients too where they are wanted."""
    drawing, scoring = measure_seconds(task)
    costs = Costs(drawing + scoring, None, score=scoring)
    if not gradients:
        return costs
    config = OptimizeConfig(
        num_inference_steps=task.num_inference_steps, guidance_scale=task.guidance_scale
    )
    backward = measure_backward_cost(task.pipe, task.prompt, config)
    costs = replace(costs, backward=backward, alone=drawing)
    assert task.reward is not None  # a searching method has one
    objective = weigh(task.reward, task.prompt, task.weights or "category").objective
    if not objective.pulled:  # the search will say that it needs a gradient
        return costs
    evaluate, noise = _evaluator(task, objective), make_noise(task.pipe, [task.seed])
    alone = seconds_of(lambda: evaluate(noise), task.pipe.device) - scoring
    pulled = seconds_of(lambda: evaluate(noise, "sum"), task.pipe.device)
    slope = max(0.0, pulled - costs.seconds - backward * alone)
    return replace(costs, alone=alone, slope=slope)


def _evaluator(task: Task, objective: Objective) -> Evaluator:
    paint = make_painter(
        task.pipe,
        task.prompt,
        num_inference_steps=_steps(task),
        guidance_scale=task.guidance_scale,
        seed=task.seed,
    )
    return Evaluator(paint, objective, task.prompt, task.metadata, Purse(), task.batch_size)


def measure_seconds(task: Task) -> tuple[float, float]:
    """For a picture, and for its scores, in a batch."""
    images = torch.zeros(0)

    def draw_batch() -> None:
        nonlocal images
        seeds = candidate_seeds(task.seed, 0, task.batch_size)
        images = draw(task, seeds, seeds)

    drawing = seconds_of(draw_batch, task.pipe.device) / task.batch_size
    if task.reward is None:
        return drawing, 0.0
    return drawing, seconds_of(lambda: score(task, images), task.pipe.device) / task.batch_size


def priced(budget: Budget, task: Task) -> Purse:
    """A budget in seconds as one of passes that count scores and their gradients too, by the costs
    measured in this run, so that other work on the machine changes nothing.

    It pays for one picture at least, as one has to be made.
    """
    costs, steps = task.costs, _steps(task)
    assert costs is not None  # measured before the run where a budget needs it
    drawing = costs.seconds - costs.score
    amount = steps * max(budget.amount, costs.seconds) / drawing
    return Purse(
        Budget(amount, "nfe"),
        steps,
        backward_cost=(costs.backward or 1.0) * (costs.alone or drawing) / drawing,
        score_cost=costs.score / drawing,
        slope_cost=costs.slope / drawing,
    )
