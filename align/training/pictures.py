"""Pictures of a run: the same prompts and noises, drawn before, during and after."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from align.diffusion.finite import overflow_hint
from align.rewards.frames import frame_count, frame_terms
from align.rewards.groups import skips
from align.rewards.score_cache import ScorerFailed, placed
from align.runs.clips import save_clip
from align.runs.folder import image_grid, save_image
from align.training.runs import Run
from align.training.seeding import image_seed, seeded
from align.training.stopping import Diverged

PICTURES = 8
MOST_FAILURES = 0.05  # of an update's images, where a server may fail


def spread(count: int, wanted: int) -> list[int]:
    """`wanted` indices evenly spread over `count` things; all of them where they are fewer."""
    wanted = min(count, wanted)
    return [index * count // wanted for index in range(wanted)]


def score_pictures(run: Run, name: str | None) -> dict[str, Tensor]:
    """Draw the fixed pictures, save them as `images/NAME.png`, return each reward term [b]
    of single images."""
    c, rows = run.config, spread(len(run.prompts), PICTURES)
    rows = (rows * PICTURES)[:PICTURES] if len(rows) < PICTURES else rows
    prompts, metadata = run.prompts.pick(rows)
    seeds = [image_seed("picture", c.seed, 0, i) for i in range(len(rows))]
    images = run.sampler.draw(prompts, seeds)
    check_pictures(run, images)
    if name is not None and images.ndim == 5:  # the grid below shows their first frames
        grids = torch.stack([image_grid(frame) for frame in images.unbind(1)])
        save_clip(run.folder / "images" / f"{name}.gif", grids, fps=c.fps)
    if name is not None:
        save_image(
            run.folder / "images" / f"{name}.png",
            image_grid(images if images.ndim == 4 else images[:, 0]),
            prompt="\n".join(prompts),
            seed=c.seed,
            model=c.model,
            update=run.done,
            reward=c.reward,
            noise_seeds=seeds,
            **run.picture_settings,
        )
    every = frames_apart(c)
    place = placed(run.folder, "pictures", run.done, range(frame_count(images, every)))
    with torch.no_grad(), seeded(image_seed("pictures", c.seed, run.done, 0)), place:
        return frame_terms(run.reward.alone(), images, prompts, metadata, every)


def check_pictures(run: Run, images: Float[Tensor, "b *t 3 h w"]) -> None:
    """Raise Diverged where an image is not finite."""
    if not images.isfinite().all():
        raise Diverged(f"the images are no longer finite numbers{overflow_hint(run.pipe)}")


def image_terms(
    run: Run,
    images: Float[Tensor, "b *t 3 h w"],
    prompts: list[str],
    metadata: list[dict[str, Any]],
    groups: list[int],
    update: int,
    indices: Sequence[int],
) -> dict[str, Float[Tensor, " b"]]:
    """The reward's terms of images with these numbers within an update; `groups` as in
    `Reward.terms`.

    Where a server failed and may (`failure=skip`) all scores of the image's group are NaN. Raises
    Diverged where an image or a score is not finite otherwise, ScorerFailed where too many failed.
    """
    check_pictures(run, images)
    every = frames_apart(run.config)
    frames = frame_count(images, every) // len(images)
    each = [index * frames + n for index in indices for n in range(frames)]
    with placed(run.folder, "update", update, each):
        terms = frame_terms(run.reward, images, prompts, metadata, every, groups)
    lost = torch.zeros(len(images), dtype=torch.bool)
    for name, scores in terms.items():
        bad = ~scores.isfinite()
        if bad.any() and not skips(run.reward.functions[name]):
            raise Diverged(f"reward {name} is {scores[bad][0].item()}")
        lost |= bad.cpu()
    if not lost.any():
        return terms
    return _without(run, terms, lost, groups, update)


def _without(
    run: Run, terms: dict[str, Tensor], lost: Bool[Tensor, " b"], groups: list[int], update: int
) -> dict[str, Tensor]:
    """The terms, NaN in groups of which an image has no score.

    Raises ScorerFailed where more than a twentieth of an update's images of this process has none.
    """
    before = run.failures[1] if run.failures[0] == update else 0
    run.failures = (update, before + int(lost.sum()))
    share = run.config.batch_size // run.accelerator.num_processes
    if run.failures[1] > MOST_FAILURES * share:
        raise ScorerFailed(
            f"{run.failures[1]} of {share} images of update {update + 1} have no score, more than "
            f"{MOST_FAILURES:.0%}"
        )
    fallen = {group for group, gone in zip(groups, lost.tolist(), strict=True) if gone}
    rows = torch.tensor([group in fallen for group in groups])
    return {name: s.masked_fill(rows.to(s.device), torch.nan) for name, s in terms.items()}


def mean_of(scores: Float[Tensor, " b"]) -> float | None:
    """The mean of the scores that there are; None where there is none."""
    known = scores[scores.isfinite()]
    return known.mean().item() if len(known) else None


def means_of(terms: dict[str, Float[Tensor, " b"]]) -> dict[str, float]:
    """The means of terms, without those that have none."""
    found = {name: mean_of(scores) for name, scores in terms.items()}
    return {name: mean for name, mean in found.items() if mean is not None}


def frames_apart(config: Any) -> int:
    """Of which frames of a video the reward is, every n-th; NAR's trainers have no such setting."""
    return getattr(config, "reward_every", 1)
