"""Pictures of a run: the same prompts and noises, drawn before, during and after."""

import torch
from torch import Tensor

from align.runs.folder import image_grid, save_image
from align.training.runs import Run
from align.training.seeding import image_seed, seeded

PICTURES = 8


def spread(count: int, wanted: int) -> list[int]:
    """`wanted` indices evenly spread over `count` things; all of them where they are fewer."""
    wanted = min(count, wanted)
    return [index * count // wanted for index in range(wanted)]


def score_pictures(run: Run, name: str | None) -> dict[str, Tensor]:
    """Draw the fixed pictures, save them as `images/NAME.png`, return each reward term [b]."""
    c, rows = run.config, spread(len(run.prompts), PICTURES)
    rows = (rows * PICTURES)[:PICTURES] if len(rows) < PICTURES else rows
    prompts = [run.prompts.prompts[row] for row in rows]
    metadata = [run.prompts.metadata[row] for row in rows]
    seeds = [image_seed("picture", c.seed, 0, i) for i in range(len(rows))]
    images = run.sampler.draw(prompts, seeds)
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
