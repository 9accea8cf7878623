"""Rewards of videos: the mean over their frames, or over every n-th of them."""

from collections.abc import Sequence
from typing import Any

from jaxtyping import Float
from torch import Tensor


def frame_terms(
    reward: Any,
    images: Float[Tensor, "b *t 3 h w"],
    prompts: Sequence[str],
    metadata: Sequence[dict[str, Any]] | None = None,
    every: int = 1,
    groups: Sequence[int] | None = None,
) -> dict[str, Float[Tensor, " b"]]:
    """`Reward.terms` of pictures; of videos [b, t, 3, h, w] the mean over every n-th frame, the
    first among them. `groups` as in `Reward.terms`, of pictures."""
    if images.ndim == 4:
        of_groups = {} if groups is None else {"groups": groups}
        return reward.terms(images, prompts, metadata, **of_groups)
    shown = images[:, ::every]
    count = shown.shape[1]
    each = [prompt for prompt in prompts for _ in range(count)]
    facts = None if metadata is None else [one for one in metadata for _ in range(count)]
    terms = reward.terms(shown.flatten(0, 1), each, facts)
    return {name: scores.view(-1, count).mean(1) for name, scores in terms.items()}


def frame_count(images: Float[Tensor, "b *t 3 h w"], every: int = 1) -> int:
    """How many pictures `frame_terms` scores."""
    return len(images) if images.ndim == 4 else images[:, ::every].shape[:2].numel()
