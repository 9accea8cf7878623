"""Groups of images whose scores are all alike: a method that compares learns nothing of them."""

import logging
from typing import Any

from jaxtyping import Float
from torch import Tensor

log = logging.getLogger(__name__)


def flat_share(run: Any, scores: Float[Tensor, " b"], group_size: int) -> float:
    """The share of groups whose scores are all alike, of an update's scores in all processes.

    `run.course["differed"]` remembers whether any group has ever differed. One of the first
    updates may well be all flat: rewards that few images earn begin so.
    """
    groups = scores.view(-1, group_size)
    flat = ~(groups.amax(1) > groups.amin(1))  # so are those that a server gave no scores
    if not flat.all():
        run.course["differed"] = True
    elif "differed" not in run.course:
        run.course["differed"] = False
        log.warning(
            "warning: the reward gives all images of a prompt the same score in update %d, so that "
            "there is nothing to learn from yet",
            run.done + 1,
        )
    return flat.float().mean().item()


def nothing_differed(run: Any) -> bool:
    """Whether a run that compares images has never had two of a group with different scores."""
    return run.course.get("differed") is False
