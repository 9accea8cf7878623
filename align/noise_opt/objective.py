"""What a search maximizes: the reward's terms with their weights, and which have gradients."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from align.rewards.expression import Combination, Term, format_expression, scored
from align.rewards.reward import Reward

# Losses of the release: 1 - 2 HPS, 1 - (ImageReward + 3) / 6, 1 - DA-Score, 1 - VQAScore.
RELEASED_SCALES = {"hps": 2.0, "image-reward": 1 / 6}


@dataclass(frozen=True)
class Part:
    """One summand of the objective: weight * (value of the expression - mean) / std."""

    name: str
    expression: Term | Combination
    weight: float
    mean: float = 0.0
    std: float = 1.0
    differentiable: bool = True

    def value(self, reward: Reward, terms: dict[str, Tensor]) -> Float[Tensor, " n"]:
        """Normalized, not weighted."""
        return (reward.evaluate(self.expression, terms) - self.mean) / self.std


@dataclass(frozen=True)
class Objective:
    """A reward as a weighted sum of parts; higher is better."""

    reward: Reward
    parts: tuple[Part, ...]

    @property
    def pulled(self) -> tuple[Part, ...]:
        """The parts that give a gradient: differentiable, of positive or negative weight."""
        return tuple(part for part in self.parts if part.differentiable and part.weight)

    def total(self, terms: dict[str, Float[Tensor, " n"]]) -> Float[Tensor, " n"]:
        """The weighted sum, from the scores of the reward's terms."""
        values = [part.weight * part.value(self.reward, terms) for part in self.parts]
        return torch.stack(values).sum(0)

    def plain(self, terms: dict[str, Float[Tensor, " n"]]) -> Float[Tensor, " n"]:
        """The sum without weights, by which the released CARINOX chooses: of its own four rewards
        as it scales them to losses, whatever else is in it as it is."""
        values = [
            RELEASED_SCALES.get(part.name, 1.0) * part.value(self.reward, terms)
            for part in self.parts
        ]
        return torch.stack(values).sum(0)


def parts_of(reward: Reward) -> tuple[Part, ...]:
    """The summands of a reward expression; the sum of their weighted values is the reward."""
    found = []
    for item, weight in reward.expression.items:
        if isinstance(item, Combination) and item.kind == "z":
            for term, inner in item.items:
                assert isinstance(term, Term)  # the parser admits nothing else
                mean, std = reward.statistics[term.key]
                found.append(_part(reward, term, weight * inner, mean, std))
        else:
            found.append(_part(reward, item, weight))
    return tuple(found)


def _part(
    reward: Reward, item: Term | Combination, weight: float, mean: float = 0.0, std: float = 1.0
) -> Part:
    functions = [reward.functions[format_expression(one)] for one in scored(item)]
    smooth = all(getattr(function, "differentiable", True) for function in functions)
    return Part(format_expression(item), item, weight, mean, std, smooth)


def check_gradients(method: str, parts: Sequence[Part]) -> None:
    """Raise ValueError where a method that follows gradients meets a reward without one.

    carinox takes such terms for screening and selection as long as another one has a gradient.
    """
    hard = [part.name for part in parts if not part.differentiable]
    if not hard or (method == "carinox" and len(hard) < len(parts)):
        return
    raise ValueError(
        f"reward {', '.join(hard)} has no gradient, which method {method} needs; bon, zero-order "
        "and evolution take it, and in carinox it screens and selects beside a term that has one"
    )
