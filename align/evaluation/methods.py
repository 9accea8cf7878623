"""Methods by name: each a plain function `(task, budgets) -> results`, one result per budget.

base            one picture from the noise of the seed
lora=DIR        the same with a LoRA; lora=DIR+bon puts a search on top
bon, bon=16     best of N by the reward, from the noises that `align optimize` starts from: nested
reno, carinox, ...   the other methods of `align.optimize`, from the noises of the seed
nar, nar=DIR    one picture by neighboring-autoregressive decoding, by its own settings; DIR is a
                model, or the LoRA of an `align nar align` run
nar+bon=16, nar=DIR+bon
                best of N of those
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from align.config.budget import Budget
from align.config.checks import one_of
from align.config.optimize import SEARCHES, OptimizeConfig
from align.diffusion.sample import candidate_seeds
from align.evaluation.nar_methods import nar_source, nar_spending
from align.evaluation.pricing import Task, candidates, draw, priced, score
from align.evaluation.spending import Spent, spending_of
from align.noise_opt import optimize
from align.rewards.reward import Reward


@dataclass(frozen=True)
class Method:
    """One entry of --methods."""

    label: str
    """As written."""
    search: str
    """base or one of SEARCHES."""
    loras: tuple[str, ...] = ()
    count: int | None = None
    """N of `bon=N`."""
    nar: str | None = None
    """The NAR model, of a method that draws by one."""

    @property
    def searches(self) -> bool:
        """Whether it chooses by a reward."""
        return self.search in SEARCHES

    @property
    def follows_gradients(self) -> bool:
        """Whether it takes the reward's gradient."""
        return self.searches and SEARCHES[self.search].pull is not None


@dataclass(frozen=True)
class Made:
    """A picture and what it cost."""

    image: Float[Tensor, "3 h w"]
    spent: Spent


def parse_methods(text: str) -> list[Method]:
    """The methods of a list such as `base,lora=runs/a,lora=runs/a+bon=4`.

    Raises ValueError for an unknown method, a count out of place, or one named twice.
    """
    methods = [_parse_method(label.strip()) for label in _split(text, ",")]
    for index, method in enumerate(methods):
        if method.label in [other.label for other in methods[:index]]:
            raise ValueError(f"method {method.label} is named twice; name each once")
    return methods


def names() -> tuple[str, ...]:
    """What a method can be called."""
    return ("base", "lora=DIR", *SEARCHES, "nar", "nar=DIR+bon")


def _split(text: str, mark: str) -> list[str]:
    """The parts of a list; a mark in the name of a path that exists splits nothing."""
    parts, pieces = [], text.split(mark)
    while pieces:
        count = max((n for n in range(2, len(pieces) + 1) if _is_path(mark, pieces[:n])), default=1)
        parts.append(mark.join(pieces[:count]))
        pieces = pieces[count:]
    return parts


def _is_path(mark: str, pieces: Sequence[str]) -> bool:
    """Whether METHOD=PATH or METHOD=PATH=WEIGHT was cut at a mark inside of the path."""
    if "=" not in pieces[0]:
        return False
    path = mark.join(pieces).partition("=")[2].strip()
    names = [name for name in (path, path.rpartition("=")[0]) if mark in name]
    return any(Path(name).expanduser().exists() for name in names)


def _parse_method(label: str) -> Method:
    search, loras, count, nar = "base", [], None, None
    for part in _split(label, "+"):
        name, equals, value = part.strip().partition("=")
        if name == "lora" and value:
            loras.append(value)
        elif name == "nar":
            nar, more = nar_source(value)
            loras += more
        elif name == "bon" and equals:
            if not value.isdigit() or int(value) < 1:
                raise ValueError(f"method {label!r}: bon={value} must be a whole number from 1")
            search, count = "bon", int(value)
        elif name in ("base", *SEARCHES) and not equals:
            search = name
        elif name == "nar-bon":  # a run.json of before
            now = f"nar+bon={value}" if value.isdigit() else f"nar{equals}{value}+bon"
            raise ValueError(f"there is no method {part.strip()!r} any more; it is called {now}")
        else:
            raise ValueError(f"there is no method {part.strip()!r}; {one_of(name, names())}")
    if nar is not None and search not in ("base", "bon"):
        raise ValueError(f"method {label!r}: {search} needs noise, which NAR has none; take bon")
    return Method(label, search, tuple(loras), count, nar)


def run(
    method: Method, tasks: Sequence[Task], budgets: Sequence[Budget | None]
) -> list[list[Made]]:
    """For each task one picture per budget, smallest budget first; None is the method's default.

    The tasks are those of one prompt, which differ in their seeds.
    """
    if method.search == "base":  # no search: a larger budget buys nothing more
        return [[made] * len(budgets) for made in _draw_all(tasks)]
    if method.search == "bon":
        return [_best_of_n(method, task, budgets) for task in tasks]
    return [[_optimized(method, task, budget) for budget in budgets] for task in tasks]


def _spending(task: Task, reward: Reward | None) -> Any:
    return (nar_spending if task.nar else spending_of)(task.pipe, reward)


def _draw_all(tasks: Sequence[Task]) -> list[Made]:
    """A picture each, as many at a time as --batch-size says."""
    made, batch = [], tasks[0].batch_size
    for start in range(0, len(tasks), batch):
        seeds = [task.seed for task in tasks[start : start + batch]]
        with _spending(tasks[0], None) as spent:
            images = draw(tasks[0], seeds, seeds).cpu()
        made += [Made(image, spent.share(1 / len(seeds))) for image in images]
    return made


def _best_of_n(method: Method, task: Task, budgets: Sequence[Budget | None]) -> list[Made]:
    """The best of the first N noises by the reward. One round of drawing serves all budgets."""
    counts = [candidates(budget, task, method.count) for budget in budgets]
    images, scores, rounds = [], [], []
    for start in range(0, max(counts), task.batch_size):
        seeds = candidate_seeds(task.seed, start, min(task.batch_size, max(counts) - start))
        with _spending(task, task.reward) as spent:
            images += draw(task, seeds, [task.seed] * len(seeds)).cpu()
            scores += score(task, torch.stack(images[start:])).tolist()
        rounds += [spent.share(1 / len(seeds))] * len(seeds)
    best = [max(range(count), key=lambda i: scores[i]) for count in counts]
    return [
        Made(images[i], sum(rounds[:count], start=Spent()))
        for i, count in zip(best, counts, strict=True)
    ]


def _optimized(method: Method, task: Task, budget: Budget | None) -> Made:
    """`align.optimize`; what it spends is counted here, by the same hooks as everything else."""
    purse = priced(budget, task) if budget is not None and budget.unit == "s" else None
    config = OptimizeConfig(
        method=method.search,
        budget=None if budget is None or purse else str(budget),
        weights=task.weights,
        num_inference_steps=task.num_inference_steps,
        guidance_scale=task.guidance_scale,
        batch_size=task.batch_size,
        backward_cost=task.costs.backward if task.costs else None,
        seed=task.seed,
    )
    image = None
    with spending_of(task.pipe, task.reward) as spent:
        for step in optimize(
            task.pipe, task.prompt, task.reward, config, metadata=task.metadata, purse=purse
        ):
            image = step.best_image
    if image is None:
        raise ValueError(f"{method.label} made no picture with a budget of {budget}; give it more")
    return Made(image.detach().cpu(), spent)
