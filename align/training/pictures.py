"""Pictures of a run: the same prompts and noises, drawn before, during and after."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from align.diffusion.finite import overflow_hint
from align.runs.folder import image_grid, save_image
from align.training.runs import Run
from align.training.seeding import image_seed, seeded
from align.training.stopping import Diverged

PICTURES = 8


def spread(count: int, wanted: int) -> list[int]:
    """`wanted` indices evenly spread over `count` things; all of them where they are fewer."""
    wanted = min(count, wanted)
    return [index * count // wanted for index in range(wanted)]


def score_pictures(run: Run, name: str | None) -> dict[str, Tensor]:
    """Draw the fixed pictures, save them as `images/NAME.png`, return each reward term [b]."""
    c, rows = run.config, spread(len(run.prompts), PICTURES)
    rows = (rows * PICTURES)[:PICTURES] if len(rows) < PICTURES else rows
    prompts, metadata = run.prompts.pick(rows)
    seeds = [image_seed("picture", c.seed, 0, i) for i in range(len(rows))]
    images = run.sampler.draw(prompts, seeds)
    check_pictures(run, images)
    if name is not None:
        save_image(
            run.folder / "images" / f"{name}.png",
            image_grid(images),
            prompt="\n".join(prompts),
            seed=c.seed,
            model=c.model,
            update=run.done,
            reward=c.reward,
            noise_seeds=seeds,
            **run.picture_settings,
        )
    with torch.no_grad(), seeded(image_seed("pictures", c.seed, run.done, 0)):
        return run.reward.terms(images, prompts, metadata)


def check_pictures(run: Run, images: Float[Tensor, "b 3 h w"]) -> None:
    """Raise Diverged where an image is not finite."""
    if not images.isfinite().all():
        raise Diverged(f"the images are no longer finite numbers{overflow_hint(run.pipe)}")


def image_terms(
    run: Run,
    images: Float[Tensor, "b 3 h w"],
    prompts: list[str],
    metadata: list[dict[str, Any]],
) -> dict[str, Float[Tensor, " b"]]:
    """The reward's terms. Raises Diverged where an image or a score is not finite."""
    check_pictures(run, images)
    terms = run.reward.terms(images, prompts, metadata)
    for name, scores in terms.items():
        if not scores.isfinite().all():
            raise Diverged(f"reward {name} is {scores[~scores.isfinite()][0].item()}")
    return terms
