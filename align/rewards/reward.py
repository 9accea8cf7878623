"""The `Reward` object: checks its input, scores each term, combines them as the expression says."""

import json
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from align.config.checks import one_of
from align.rewards import score_cache
from align.rewards.catalogue import SETS, Named
from align.rewards.expression import (
    Combination,
    Term,
    expand,
    format_expression,
    leaves,
    parse_expression,
    scored,
)
from align.rewards.groups import Rank, comparing, group_rows, wants_group
from align.rewards.user import UserReward, load_function
from align.rewards.weights import sharing

STATISTICS = Path(__file__).parent.parent / "embedded" / "rewards" / "trust.json"
TOLERANCE = 1e-3  # how far outside [0, 1] rounding may carry a pixel


def check_images(images: Tensor) -> None:
    """Raise TypeError or ValueError unless `images` is a finite float [b, 3, h, w] in [0, 1]."""
    if not isinstance(images, Tensor):
        raise TypeError(f"images must be a torch.Tensor, got {type(images).__name__}")
    if images.ndim != 4 or images.shape[1] != 3 or 0 in images.shape:
        raise ValueError(
            f"images must have shape [batch, 3, height, width], got {list(images.shape)}"
        )
    if not images.is_floating_point():
        raise TypeError(f"images must be floating point in [0, 1], got {images.dtype}")
    low, high = images.detach().aminmax()
    if not (torch.isfinite(low) and torch.isfinite(high)):
        raise ValueError("images must be finite, got NaN or infinity")
    if low < -TOLERANCE or high > 1 + TOLERANCE:
        raise ValueError(f"images must lie in [0, 1], got values from {low:.4g} to {high:.4g}")


def check_prompts(prompts: Sequence[str], count: int) -> None:
    """Raise TypeError or ValueError unless `prompts` is one non-empty string per image."""
    if isinstance(prompts, str) or not isinstance(prompts, Sequence):
        raise TypeError(f"prompts must be a list of str, got {type(prompts).__name__}")
    for index, prompt in enumerate(prompts):
        if not isinstance(prompt, str):
            raise TypeError(f"prompt {index} must be a str, got {type(prompt).__name__}")
        if not prompt.strip():
            raise ValueError(f"prompt {index} is empty; every image needs a prompt")
    if len(prompts) != count:
        raise ValueError(f"got {len(prompts)} prompts for {count} images; there must be one each")


class Reward(nn.Module):
    """Scores images [b, 3, h, w] in [0, 1] against b prompts; higher is better.

    Attributes:
        expression: the tree of terms and weights (`align.rewards.expression`).
        differentiable: whether scores carry gradients to the images.
    """

    def __init__(
        self,
        expression: Combination,
        functions: dict[str, Callable],
        statistics: dict[str, tuple[float, float]],
        device: torch.device | None,
        batch: int,
    ):
        super().__init__()
        self.expression = expression
        self.functions = functions
        self.statistics = statistics
        self.device = device
        self.batch = batch
        self.differentiable = all(getattr(f, "differentiable", True) for f in functions.values())
        # registered, so that .to(), .double() and .requires_grad_() reach the weights
        self.models = nn.ModuleList(f for f in functions.values() if isinstance(f, nn.Module))

    def forward(
        self,
        images: Float[Tensor, "b 3 h w"],
        prompts: Sequence[str],
        metadata: Sequence[dict] | None = None,
        groups: Sequence[Hashable] | None = None,
    ) -> Float[Tensor, " b"]:
        """The combined score of each image; `groups` as in `terms`.

        Raises:
            ValueError, TypeError: images not as above, not one non-empty prompt (and metadata, if
                given) per image, or a user's function that fails or returns something else.
        """
        return self.combine(self.terms(images, prompts, metadata, groups))

    def terms(
        self,
        images: Float[Tensor, "b 3 h w"],
        prompts: Sequence[str],
        metadata: Sequence[dict] | None = None,
        groups: Sequence[Hashable] | None = None,
    ) -> dict[str, Float[Tensor, " b"]]:
        """The score of each term, unweighted and not normalised, by its name in the expression.

        Terms that compare images get whole groups: images of equal ids in `groups`, by default one
        group a run of equal prompts. All others are scored `micro_batch_size` at a time.
        """
        check_images(images)
        check_prompts(prompts, len(images))
        if metadata is not None and len(metadata) != len(images):
            raise ValueError(f"got {len(metadata)} metadata for {len(images)} images")
        images = self.placed(images)
        each = list(torch.arange(len(images)).split(self.batch))
        return {
            name: _score_all(
                name,
                function,
                [torch.tensor(rows) for rows in group_rows(prompts, groups, name)]
                if wants_group(function)
                else each,
                images,
                prompts,
                metadata,
            )
            for name, function in self.functions.items()
        }

    def alone(self) -> "Reward":
        """What of the reward scores single images: its terms without those that compare images;
        of `rank(TERM)` the term. Only their `terms` mean something."""
        functions = {n: f for n, f in self.functions.items() if not wants_group(f)}
        for function in self.functions.values():
            if isinstance(function, Rank):
                functions |= function.reward.alone().functions
        return Reward(self.expression, functions, {}, self.device, self.batch)

    def placed(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
        """The images on the reward's device. Where it was given none, its weights go to theirs;
        those of a user's own function are the user's to place."""
        if self.device is not None:
            return images.to(self.device)
        for model in self.models:
            weight = next(model.parameters(), None)
            own = isinstance(model, UserReward)
            if weight is not None and weight.device != images.device and not own:
                model.to(images.device)
        return images

    def combine(self, terms: dict[str, Float[Tensor, " b"]]) -> Float[Tensor, " b"]:
        """The expression's value from the scores of its terms, as `terms` returns them."""
        return self.evaluate(self.expression, terms)

    def evaluate(
        self, node: Term | Combination, terms: dict[str, Float[Tensor, " b"]]
    ) -> Float[Tensor, " b"]:
        """The value of a part of the expression from the scores of its terms."""
        if isinstance(node, Term):
            return terms[node.key]
        if node.kind == "rank":
            return terms[format_expression(node)]
        if node.kind == "z":
            values = []
            for part, weight in node.items:
                assert isinstance(part, Term)  # the parser admits nothing else
                mean, std = self.statistics[part.key]
                values.append(weight * (terms[part.key] - mean) / std)
        else:
            values = [weight * self.evaluate(part, terms) for part, weight in node.items]
        stack = torch.stack(values)
        if node.kind == "min":
            return stack.amin(0)
        return stack.prod(0) if node.kind == "product" else stack.sum(0)


def _score_all(
    name: str,
    function: Callable,
    pieces: list[Tensor],
    images: Tensor,
    prompts: Sequence[str],
    metadata: Sequence[dict] | None,
) -> Float[Tensor, " b"]:
    """A term's scores of all images, those of each piece's rows in one call."""
    order, parts = torch.cat(pieces), []
    for rows in pieces:
        picked = rows.tolist()
        run = slice(picked[0], picked[0] + len(picked))
        together = picked == list(range(run.start, run.stop))  # then nothing is copied
        with score_cache.rows(picked):
            parts.append(
                _score(
                    name,
                    function,
                    images[run] if together else images[rows.to(images.device)],
                    [prompts[int(row)] for row in picked],
                    None if metadata is None else [metadata[row] for row in picked],
                )
            )
    scores = torch.cat(parts)
    return scores[order.argsort().to(scores.device)] if len(parts) > 1 else scores


def _score(name: str, function: Callable, images: Tensor, prompts: list[str], metadata) -> Tensor:
    if getattr(function, "wants_metadata", False):
        scores = function(images, prompts, metadata)
    else:
        scores = function(images, prompts)
    wants_gradient = torch.is_grad_enabled() and images.requires_grad
    if wants_gradient and getattr(function, "differentiable", True) and not scores.requires_grad:
        raise ValueError(
            f"reward {name!r} returned scores without a gradient to the images; "
            "compute them in torch, or set its attribute differentiable = False"
        )
    return scores


def build_reward(
    reward, device, known: Mapping[str, Named], *, refused, batch: int, statistics
) -> Reward:
    """What `load_reward` and `load_judge` share; they say what the arguments mean."""
    owner = getattr(reward, "__self__", reward)  # of a bound method
    if isinstance(owner, Reward):
        for term in leaves(owner.expression):
            _check_name(term, {term.name}, refused)
    elif isinstance(name := getattr(reward, "judge", None), str):
        _check_name(Term(name), {name}, refused)
    if isinstance(reward, Reward):
        return reward
    if batch < 1:
        raise ValueError(f"micro_batch_size must be at least 1, got {batch}")
    device = None if device is None else torch.device(device)
    if callable(reward):
        name = getattr(reward, "__name__", type(reward).__name__)
        tree = Combination("sum", ((Term(name), 1.0),))
        return Reward(tree, {name: UserReward(reward, name)}, {}, device, batch)
    tree = expand(parse_expression(reward), SETS)
    terms = leaves(tree)
    for term in terms:
        _check_name(term, known, refused)
    stored = _statistics(tree, statistics)
    with sharing():
        functions = {
            format_expression(one): _load(one, known, device, batch) for one in scored(tree)
        }
    compared = set(comparing(functions))
    if lost := [part.key for part, _ in _normalised(tree) if part.key in compared]:
        raise ValueError(f"z({lost[0]}): {lost[0]} compares images, which z(...) cannot normalise")
    return Reward(tree, functions, stored, device, batch)


def _check_name(term: Term, known: Collection[str], refused) -> None:
    if term.name in refused:
        raise ValueError(
            f"{term.name!r} is a judge, not a training signal: use it as --judge, never as --reward"
        )
    if not term.name.endswith(".py") and term.name not in known:
        raise ValueError(f"unknown reward {term.name!r}: {one_of(term.name, [*known, *SETS])}")


def _load(one: Term | Combination, known: Mapping[str, Named], device, batch: int) -> Callable:
    if isinstance(one, Term):
        return _load_term(one, known, device)
    ((term, _),) = one.items
    assert isinstance(term, Term)  # the parser admits nothing else in rank(...)
    inner = Combination("sum", ((term, 1.0),))
    return Rank(Reward(inner, {term.key: _load_term(term, known, device)}, {}, device, batch))


def _load_term(term: Term, known: Mapping[str, Named], device) -> Callable[..., Any]:
    if term.name.endswith(".py"):
        assert term.argument is not None  # the parser demands a function
        return UserReward(load_function(Path(term.name), term.argument), term.key)
    return resolve_name(known[term.name].load)(term.argument, device)


def _statistics(tree: Combination, path) -> dict[str, tuple[float, float]]:
    """(mean, std) of each term under `z`, from `path` or the shipped file."""
    wanted = [part.key for part, _ in _normalised(tree)]
    if not wanted:
        return {}
    file = Path(path) if path is not None else STATISTICS
    if path is not None and not file.is_file():
        raise FileNotFoundError(f"no statistics file {file}")
    stored = json.loads(file.read_text()) if file.is_file() else {}
    stored = stored.get("statistics", stored)
    for key in wanted:
        if key not in stored:
            known = ", ".join(sorted(stored)) or "none"
            raise ValueError(f"z({key}) needs base statistics of {key!r}; stored are: {known}")
    return {key: (float(stored[key]["mean"]), float(stored[key]["std"])) for key in wanted}


def _normalised(node: Term | Combination) -> list[tuple[Term, float]]:
    if isinstance(node, Term):
        return []
    if node.kind == "z":
        return [(part, weight) for part, weight in node.items if isinstance(part, Term)]
    return [found for part, _ in node.items for found in _normalised(part)]
