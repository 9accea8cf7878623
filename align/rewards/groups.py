"""Rewards that compare the images of a prompt with each other: `wants_group = True`.

They get a whole group of images of one prompt at once. Their scores mean something within that
group alone, so only what holds groups whole can use them; everything else refuses them.
"""

from collections.abc import Callable, Hashable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

if TYPE_CHECKING:
    from align.rewards.reward import Reward


def wants_group(function: Any) -> bool:
    """Whether a function scores the images of a group against each other."""
    return bool(getattr(function, "wants_group", False))


def comparing(functions: dict[str, Callable]) -> list[str]:
    """The names of those functions that want whole groups."""
    return [name for name, function in functions.items() if wants_group(function)]


def skips(function: Any) -> bool:
    """Whether a function's scores may be NaN, where a server failed."""
    if isinstance(function, Rank):
        return any(skips(inner) for inner in function.reward.functions.values())
    return bool(getattr(function, "skips", False))


def pointwise(reward: "Reward", where: str) -> "Reward":
    """The reward, if it scores each image by itself; `where` says who asks.

    Raises ValueError where a term compares images with each other.
    """
    if names := comparing(reward.functions):
        raise ValueError(
            f"reward {', '.join(names)} compares the images of a prompt with each other, and "
            f"{where} takes scores of single images; --method dpo and nft, `align nar align` and "
            "best of N (bon) can use it"
        )
    return reward


def group_rows(
    prompts: Sequence[str], groups: Sequence[Hashable] | None, name: str
) -> list[list[int]]:
    """The rows of each group: of each of the ids in `groups`, or of each run of equal prompts.

    Raises ValueError, naming the reward `name`, for a group of one image or of several prompts.
    """
    if groups is None:
        starts = [row > 0 and prompts[row] != prompts[row - 1] for row in range(len(prompts))]
        groups = torch.tensor(starts).cumsum(0).tolist()
    if len(groups) != len(prompts):
        raise ValueError(f"got {len(groups)} groups for {len(prompts)} images")
    found: dict[Hashable, list[int]] = {}
    for row, group in enumerate(groups):
        found.setdefault(group, []).append(row)
    for rows in found.values():
        if len({prompts[row] for row in rows}) > 1:
            raise ValueError(f"reward {name!r} compares images of one prompt; a group has several")
        if len(rows) < 2:
            raise ValueError(
                f"reward {name!r} compares the images of a prompt with each other, and "
                f"{prompts[rows[0]]!r} has only one"
            )
    return list(found.values())


class Rank(nn.Module):
    """`rank(TERM)`: each image's rank in its group by a reward, 0 for the lowest, over the number
    of images: 0 to (n - 1)/n. Equal scores share their mean rank."""

    wants_group = True
    wants_metadata = True
    differentiable = False

    def __init__(self, reward: "Reward"):
        super().__init__()
        self.reward = reward

    def forward(
        self, images: Float[Tensor, "n 3 h w"], prompts: list[str], metadata: Any = None
    ) -> Float[Tensor, " n"]:
        """The ranks of a whole group."""
        return ranks(self.reward(images, prompts, metadata))


def ranks(scores: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """Ranks 0 to n - 1 over n, ties at their mean; all NaN where a score is not finite."""
    if not scores.isfinite().all():
        return torch.full_like(scores, torch.nan)
    below = (scores[None] < scores[:, None]).sum(1)
    alike = (scores[None] == scores[:, None]).sum(1)
    return (below + (alike - 1) / 2).to(scores) / len(scores)
