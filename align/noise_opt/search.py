"""`optimize`: the search for the noise of one prompt, whatever the method, step by step."""

import itertools
import random
import time
from collections.abc import Generator
from dataclasses import dataclass, field
from pkgutil import resolve_name
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from align.config.budget import Purse, parse_budget
from align.config.optimize import SEARCHES, OptimizeConfig
from align.diffusion.denoisers import default_steps, refuse_videos
from align.diffusion.sample import candidate_seeds, make_noise
from align.noise_opt.evaluate import Evaluator
from align.noise_opt.guard import disturbed
from align.noise_opt.objective import Objective, check_gradients
from align.noise_opt.paint import Painter, make_painter, preview_steps
from align.noise_opt.records import Answer, Ask, OptimizeStep, Setup
from align.noise_opt.regularizers import prior_gradient
from align.noise_opt.weights import Weighing, weigh
from align.rewards import load_reward
from align.rewards.groups import comparing, pointwise

TIMED = 3  # runs that a backward's cost is the median of


def optimize(
    pipe: Any,
    prompt: str,
    reward: Any,
    config: OptimizeConfig | None = None,
    *,
    metadata: dict[str, Any] | None = None,
    purse: Purse | None = None,
) -> Generator[OptimizeStep, None, None]:
    """Search the noise whose image of `prompt` a reward likes best; yields every iteration.

    `reward` is an expression or a callable as `align.load_reward` takes it; `metadata` is handed
    to it; `purse` limits and counts in place of one made of `config.budget`. Close the generator at
    any time: `best_image` and `best_noise` of the last step are the result. The noise is float32 of
    unit variance; `align.generate(latents=best_noise[None], seed=config.seed)` gives the image.

    Raises ValueError, before any work, for an empty prompt, a reward without gradient where the
    method needs one, a budget that pays for no image, or settings that do not fit the model.
    """
    config = config or OptimizeConfig()
    if not isinstance(prompt, str):
        raise TypeError(f"prompt must be a str, got {type(prompt).__name__}; give one prompt")
    if not prompt.strip():
        raise ValueError("the prompt is empty; say what the image should show")
    refuse_videos(pipe, "optimize")
    reward = load_reward(reward)
    if config.method != "bon":
        pointwise(reward, f"method {config.method}")
    weighing = weigh(reward, prompt, config.own("weights"), config.category)
    if SEARCHES[config.method].pull:
        check_gradients(config.method, weighing.objective.parts)
    steps = config.num_inference_steps or default_steps(pipe)
    check_budget(config, steps)
    paint = _painter(pipe, prompt, config, steps)
    return _run(pipe, prompt, paint, weighing, config, steps, metadata, purse)


def _purse(pipe: Any, prompt: str, config: OptimizeConfig, steps: int) -> Purse:
    purse = Purse(parse_budget(config.budget) if config.budget else None, steps)
    if config.backward_cost is not None:
        purse.backward_cost = config.backward_cost
    elif (
        purse.budget is not None and SEARCHES[config.method].pull and purse.budget.unit != "images"
    ):
        purse.backward_cost = measure_backward_cost(pipe, prompt, config)
    return purse


def check_budget(config: OptimizeConfig, steps: int) -> None:
    """Raise ValueError where a budget does not pay for one image of this many steps."""
    if config.budget is None:
        return
    budget = parse_budget(config.budget)
    least = steps if budget.unit == "nfe" else 1 if budget.unit == "images" else 0
    if budget.amount < least:
        raise ValueError(
            f"budget is {config.budget}, but one image takes {least} {budget.unit}; give more"
        )


def measure_backward_cost(pipe: Any, prompt: str, config: OptimizeConfig, batch: int = 2) -> float:
    """Forwards of the generator that one backward counts as, timed on this machine.

    (forward with graph + backward) / (forward without graph) - 1, medians of three runs.
    """
    steps = config.num_inference_steps or default_steps(pipe)
    paint = _painter(pipe, prompt, config, steps)
    noise = make_noise(pipe, list(range(batch)), config.height, config.width).float()

    def forward() -> None:
        with torch.no_grad():
            paint(noise).sum().item()

    def both() -> None:
        with torch.enable_grad():
            leaf = noise.clone().requires_grad_(True)
            torch.autograd.grad(paint(leaf).sum(), leaf)[0].sum().item()

    plain, graph = _median_seconds(forward), _median_seconds(both)
    return max(0.1, graph / plain - 1)


def _median_seconds(action: Any) -> float:
    action()
    seconds = []
    for _ in range(TIMED):
        start = time.perf_counter()
        action()
        seconds.append(time.perf_counter() - start)
    return sorted(seconds)[TIMED // 2]


def _painter(pipe: Any, prompt: str, config: OptimizeConfig, steps: int) -> Painter:
    return make_painter(
        pipe,
        prompt,
        num_inference_steps=steps,
        guidance_scale=config.guidance_scale,
        grad_steps=config.grad_steps,
        seed=config.seed,
        checkpointing=config.checkpointing,
        height=config.height,
        width=config.width,
    )


@dataclass
class _Best:
    """The best candidate so far."""

    image: Tensor | None = None
    noise: Tensor | None = None
    terms: dict[str, float] = field(default_factory=dict)
    total: float = -float("inf")
    plain: float = -float("inf")
    """What chooses in its place where terms count without their weights."""
    robust: float | None = None
    """Mean score of slightly changed copies of the image, once an optimized one challenges it."""


def _run(
    pipe: Any,
    prompt: str,
    paint: Painter,
    weighing: Weighing,
    config: OptimizeConfig,
    steps: int,
    metadata: dict[str, Any] | None,
    purse: Purse | None,
) -> Generator[OptimizeStep, None, None]:
    purse = purse or _purse(pipe, prompt, config, steps)
    evaluate = Evaluator(
        paint, weighing.objective, prompt, metadata, purse, config.batch_size, config.clip
    )
    setup = _setup(pipe, weighing.objective, config, purse, preview_steps(pipe, steps))
    method = SEARCHES[config.method]
    search = resolve_name(method.search)(setup)
    best, answer = _Best(), None
    for iteration in itertools.count():
        try:
            ask = next(search) if answer is None else search.send(answer)
        except StopIteration:
            break
        answer = evaluate(ask.noise, ask.pull, ask.stop)
        improved = ask.stop is None and _choose(best, ask, answer, evaluate, method.chooses)
        if best.image is None or best.noise is None:
            raise RuntimeError(
                f"no image of {prompt!r} and its score was finite; try another dtype or model"
            )
        yield _step(iteration, ask, answer, best, purse, improved)


def _setup(
    pipe: Any, objective: Objective, config: OptimizeConfig, purse: Purse, preview: int
) -> Setup:
    pull = SEARCHES[config.method].pull or "sum"
    explore_share = config.explore_share
    if explore_share is None:
        explore_share = 1.0 if preview else 0.33
    if config.exact and pull == "image":
        pull = "exact"
    # Noise and all that is done to it is float32, also with a model in half precision.
    dtype = torch.float64 if pipe.vae.dtype == torch.float64 else torch.float32
    weights = torch.tensor([part.weight for part in objective.pulled], dtype=dtype)

    def draw(start: int, count: int) -> Tensor:
        seeds = candidate_seeds(config.seed, start, count)
        return make_noise(pipe, seeds, config.height, config.width).to(dtype)

    return Setup(
        iterations=config.own("iterations"),
        seeds=config.own("seeds"),
        seeds_given=config.seeds is not None,
        iterations_given=config.iterations is not None,
        learning_rate=config.own("learning_rate"),
        clip=config.clip,
        explore_share=explore_share,
        weights=weights.to(pipe._execution_device),
        pull=pull,
        prior=prior_gradient(config.regularizer),
        draw=draw,
        # another seed, or its first draw would be the first candidate's noise once more
        fresh=torch.Generator().manual_seed(
            random.Random(f"align-search-{config.seed}").getrandbits(63)
        ),
        batch_size=config.batch_size,
        purse=purse,
        preview=preview,
        whole=bool(comparing(objective.reward.functions)),
    )


def _choose(best: _Best, ask: Ask, answer: Answer, evaluate: Evaluator, chooses: str) -> bool:
    """Take over a candidate that beats the best; whether there was one.

    `chooses` is that of a `SearchMethod`: plain compares by the sum of the terms without their
    weights. With robust, those that a gradient made are compared by the score of slightly changed
    copies of their images: a gradient finds scores without the image that they stand for, which
    mere choosing hardly does.
    """
    totals = answer.totals
    if chooses == "plain":
        sums = evaluate.objective.plain(answer.terms).to(totals.device)[: len(totals)]
        sums = sums.masked_fill(~totals.isfinite(), -torch.inf)
        row, robust = int(sums.argmax()), None
        if not float(sums[row]) > best.plain:
            return False
        best.plain = float(sums[row])
    elif chooses != "robust" or ask.phase == "explore" or best.image is None:
        row, robust = int(totals.argmax()), None
        if not float(totals[row]) > best.total:
            return False
    else:
        if best.robust is None:
            best.robust = float(_robust(best.image[None], evaluate)[0])
        scores = _robust(answer.images, evaluate)
        scores = scores.masked_fill(~totals.isfinite(), -torch.inf)
        row, robust = int(scores.argmax()), float(scores.max())
        if not robust > best.robust:
            return False
    best.image, best.noise = answer.images[row], ask.noise[row].detach().clone()
    best.terms = {name: float(score[row]) for name, score in answer.terms.items()}
    best.total, best.robust = float(totals[row]), robust
    return True


def _robust(images: Float[Tensor, "n 3 h w"], evaluate: Evaluator) -> Float[Tensor, " n"]:
    """Each image's mean score over slightly changed copies."""
    copies = torch.cat([disturbed(image) for image in images])
    return evaluate.score(copies)[1].view(len(images), -1).mean(1)


def _step(
    iteration: int, ask: Ask, answer: Answer, best: _Best, purse: Purse, improved: bool
) -> OptimizeStep:
    assert best.image is not None
    assert best.noise is not None
    row = int(answer.totals.argmax())
    return OptimizeStep(
        iteration=iteration,
        phase=ask.phase,
        image=answer.images[row],
        terms={name: float(score[row]) for name, score in answer.terms.items()},
        total=float(answer.totals[row]),
        noise=ask.noise[row].detach(),
        best_image=best.image,
        best_terms=best.terms,
        best_total=best.total,
        best_noise=best.noise,
        seconds=purse.seconds,
        generator_forwards=purse.generator_forwards,
        generator_backwards=purse.generator_backwards,
        reward_forwards=purse.reward_forwards,
        improved=improved,
        images=answer.images,
        totals=answer.totals,
        noises=ask.noise.detach(),
        notes=(*ask.notes, *_dropped(answer)),
    )


def _dropped(answer: Answer) -> tuple[str, ...]:
    """A sentence where candidates are lost, as their score or gradient is not finite."""
    bad = ~answer.totals.isfinite()
    if answer.gradients is not None:
        bad = bad | ~answer.gradients.transpose(0, 1).flatten(1).isfinite().all(1)
    count = int(bad.sum())
    if count == 0:
        return ()
    return (f"{count} of {len(bad)} candidates dropped: score or gradient is not finite",)
