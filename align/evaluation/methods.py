"""Methods by name: each a plain function `(task, budgets) -> results`, one result per budget.

base            one picture from the noise of the seed
lora=DIR        the same with a LoRA; lora=DIR+bon puts a search on top
bon, bon=16     best of N by the reward, from the noises of seed, seed + 1, …: nested
reno, carinox, carinox-paper, langevin, zero-order, evolution
                `align.optimize`, from the noises of the seed
nar, nar=DIR    one picture by neighboring-autoregressive decoding, by its own settings; DIR is a
                model, or the LoRA of an `align nar align` run
nar-bon, nar-bon=16, nar-bon=DIR, nar=DIR+bon=16
                best of N of those
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from align.budget import Budget
from align.checks import one_of
from align.config import OptimizeConfig
from align.denoisers import default_steps
from align.evaluation.nar_methods import DEFAULT, draw_nar, nar_passes, nar_source, nar_spending
from align.evaluation.spending import Spent, spending_of
from align.noise_opt import optimize
from align.noise_opt.search import PULLS, measure_backward_cost
from align.noise_opt.weights import weigh
from align.optimize_config import Method as OptimizeMethod
from align.rewards.reward import Reward
from align.sample import generate

BON_DEFAULT = 16
OPTIMIZERS = tuple(name for name in get_args(OptimizeMethod) if name != "bon")
SEARCHES = ("bon", *OPTIMIZERS)
NAMES = ("base", "lora=DIR", *SEARCHES, "nar", "nar-bon")


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
        elif name in ("nar", "nar-bon") and not (name == "nar-bon" and value.isdigit()):
            nar, more = nar_source(value)
            loras += more
            search = "bon" if name == "nar-bon" else search
        elif name in ("bon", "nar-bon") and equals:
            if not value.isdigit() or int(value) < 1:
                raise ValueError(f"method {label!r}: bon={value} must be a whole number from 1")
            search, count = "bon", int(value)
            nar = DEFAULT if name == "nar-bon" else nar
        elif name in ("base", *SEARCHES) and not equals:
            search = name
        else:
            raise ValueError(f"there is no method {part.strip()!r}; {one_of(name, NAMES)}")
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


@torch.no_grad()
def _draw(task: Task, seeds: Sequence[int]) -> Float[Tensor, "b 3 h w"]:
    if task.nar:
        return draw_nar(task.pipe, task.prompt, seeds)
    return generate(
        task.pipe,
        [task.prompt] * len(seeds),
        generator=[torch.Generator().manual_seed(seed) for seed in seeds],
        num_inference_steps=task.num_inference_steps,
        guidance_scale=task.guidance_scale,
    )


def _draw_all(tasks: Sequence[Task]) -> list[Made]:
    """A picture each, as many at a time as --batch-size says."""
    made, batch = [], tasks[0].batch_size
    for start in range(0, len(tasks), batch):
        seeds = [task.seed for task in tasks[start : start + batch]]
        with _spending(tasks[0], None) as spent:
            images = _draw(tasks[0], seeds).cpu()
        made += [Made(image, spent.share(1 / len(seeds))) for image in images]
    return made


def _best_of_n(method: Method, task: Task, budgets: Sequence[Budget | None]) -> list[Made]:
    """The best of the first N noises by the reward. One round of drawing serves all budgets."""
    counts = [candidates(budget, task, method.count) for budget in budgets]
    images, scores, rounds = [], [], []
    for start in range(0, max(counts), task.batch_size):
        seeds = [task.seed + i for i in range(start, min(start + task.batch_size, max(counts)))]
        with _spending(task, task.reward) as spent:
            images += _draw(task, seeds).cpu()
            scores += score(task, torch.stack(images[start:])).tolist()
        rounds += [spent.share(1 / len(seeds))] * len(seeds)
    best = [max(range(count), key=lambda i: scores[i]) for count in counts]
    return [
        Made(images[i], sum(rounds[:count], start=Spent()))
        for i, count in zip(best, counts, strict=True)
    ]


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


def measure_costs(task: Task, methods: Sequence[Method]) -> Costs:
    """What pictures cost in this run, and a backward pass where a method makes one."""
    seconds = measure_seconds(task)
    if not any(method.search in PULLS for method in methods):
        return Costs(seconds, None)
    config = OptimizeConfig(
        num_inference_steps=task.num_inference_steps, guidance_scale=task.guidance_scale
    )
    return Costs(seconds, measure_backward_cost(task.pipe, task.prompt, config))


def measure_seconds(task: Task) -> float:
    """For a picture and its scores, in a batch: the least of three mean times.

    On a CPU the seconds are processor time over the threads used, so that other work on the
    machine does not count; elsewhere they are those of the clock.
    """
    rounds = []
    for _ in range(3):
        with _spending(task, task.reward) as spent:
            images = _draw(task, [task.seed + i for i in range(task.batch_size)])
            if task.reward is not None:
                score(task, images)
        cpu = spent.cpu_seconds / torch.get_num_threads()
        rounds.append((cpu if images.device.type == "cpu" else spent.seconds) / task.batch_size)
    return min(rounds)


def _optimized(method: Method, task: Task, budget: Budget | None) -> Made:
    """`align.optimize`; what it spends is counted here, by the same hooks as everything else.

    A budget in seconds becomes the passes that as many candidates of best-of-N would take, by the
    costs measured in this run, so that other work on the machine changes nothing.
    """
    if budget is not None and budget.unit == "s":
        budget = Budget(float(candidates(budget, task, None) * _steps(task)), "nfe")
    config = OptimizeConfig(
        method=method.search,  # pyright: ignore[reportArgumentType]
        budget=None if budget is None else str(budget),
        weights=task.weights,
        num_inference_steps=task.num_inference_steps,
        guidance_scale=task.guidance_scale,
        batch_size=task.batch_size,
        backward_cost=task.costs.backward if task.costs else None,
        seed=task.seed,
    )
    image = None
    with spending_of(task.pipe, task.reward) as spent:
        for step in optimize(task.pipe, task.prompt, task.reward, config, metadata=task.metadata):
            image = step.best_image
    if image is None:
        raise ValueError(f"{method.label} made no picture with a budget of {budget}; give it more")
    return Made(image.detach().cpu(), spent)
