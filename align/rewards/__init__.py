"""Rewards: `load_reward(expression)` gives a function of images and prompts, higher is better.

Everything is named in the tables of `align.rewards.catalogue`; nothing is imported before it is
asked for.
"""

from typing import TYPE_CHECKING

from align.rewards.catalogue import JUDGES, REWARDS
from align.rewards.expression import parse_expression

if TYPE_CHECKING:
    from align.rewards.reward import Reward

__all__ = ["JUDGES", "REWARDS", "load_judge", "load_reward", "parse_expression"]


def load_reward(reward, device=None, *, micro_batch_size: int = 64, statistics=None) -> "Reward":
    """Load what a reward expression names (see `align.rewards.expression`), or wrap a callable.

    Args:
        reward: an expression such as `"scenes-clip=1,jpeg=0.1"`, or a callable
            `f(images, prompts)` or `f(images, prompts, metadata)` returning scores [b] (or a tuple
            whose first element they are). A `Reward` is returned as it is.
        device: where weights go and scoring happens; None follows the images.
        micro_batch_size: images scored at a time.
        statistics: for `z(...)`, a table of `align rewards calibrate` or a JSON file
            `{term: {"mean": m, "std": s}}`; None takes what ships with the embedded models.

    Raises:
        ValueError: malformed expression (says where), unknown name (suggests near ones), a judge
            asked for as a reward, `z` of a term without statistics.
        FileNotFoundError: a user's file, or weights, that are not there.
    """
    from align.rewards.reward import build_reward

    return build_reward(
        reward, device, REWARDS, refused=JUDGES, batch=micro_batch_size, statistics=statistics
    )


def load_judge(judge, device=None, *, micro_batch_size: int = 64, statistics=None) -> "Reward":
    """As `load_reward`, and the `JUDGES` are allowed: for measuring only.

    Raises ValueError for what compares images with each other too: a judge measures single ones.
    """
    from align.rewards.groups import pointwise
    from align.rewards.reward import build_reward

    known = REWARDS | JUDGES
    loaded = build_reward(
        judge, device, known, refused={}, batch=micro_batch_size, statistics=statistics
    )
    return pointwise(loaded, "a judge")
