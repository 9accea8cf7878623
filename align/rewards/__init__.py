"""Rewards: `load_reward(expression)` gives a function of images and prompts, higher is better.

Everything is named in `LOADERS`; a loader is `load(argument, device)` and returns a callable
`(images, prompts[, metadata]) -> scores`: an `nn.Module` where there are weights, with an attribute
`differentiable = False` where there is no gradient. Nothing is imported before it is asked for.
"""

from typing import TYPE_CHECKING

from align.rewards.expression import parse_expression

if TYPE_CHECKING:
    from align.rewards.reward import Reward

__all__ = ["JUDGES", "LOADERS", "load_judge", "load_reward", "parse_expression"]

LOADERS = {
    "aesthetic": "align.rewards.aesthetic:load",
    "blip-vqa": "align.rewards.blip_vqa:load",
    "clip": "align.rewards.clip:load",
    "da-score": "align.rewards.blip_vqa:load_da_score",
    "detector": "align.rewards.detector:load",
    "hps": "align.rewards.hps:load",
    "image-reward": "align.rewards.image_reward:load",
    "jpeg": "align.rewards.jpeg:load",
    "jpeg-complexity": "align.rewards.jpeg:load_complexity",
    "mps": "align.rewards.mps:load",
    "nsfw": "align.rewards.nsfw:load",
    "pickscore": "align.rewards.pickscore:load",
    "scenes-clip": "align.rewards.scenes_clip:load",
    "scenes-detector": "align.rewards.scenes_detector:load",
    "scenes-preference": "align.rewards.scenes_preference:load",
    "scenes-taste": "align.rewards.scenes_taste:load",
    "scenes-vqa": "align.rewards.scenes_vqa:load",
    "vqascore": "align.rewards.vqascore:load",
}

# Judges only measure: training on what also judges would make the measurement worthless.
JUDGES = {
    "taste": "align.rewards.judges:load_taste",
    "verifier": "align.rewards.judges:load_exact",
    "verifier-partial": "align.rewards.judges:load_partial",
}


def load_reward(reward, device=None, *, micro_batch_size: int = 64, statistics=None) -> "Reward":
    """Load what a reward expression names (see `align.rewards.expression`), or wrap a callable.

    Args:
        reward: an expression such as `"scenes-clip=1,jpeg=0.1"`, or a callable
            `f(images, prompts)` or `f(images, prompts, metadata)` returning scores [b] (or a tuple
            whose first element they are). A `Reward` is returned as it is.
        device: where weights go and scoring happens; None leaves images where they are.
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
        reward, device, LOADERS, refused=JUDGES, batch=micro_batch_size, statistics=statistics
    )


def load_judge(judge, device=None, *, micro_batch_size: int = 64, statistics=None) -> "Reward":
    """As `load_reward`, and the `JUDGES` are allowed: for measuring only."""
    from align.rewards.reward import build_reward

    return build_reward(
        judge, device, LOADERS | JUDGES, refused={}, batch=micro_batch_size, statistics=statistics
    )
