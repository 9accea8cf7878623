"""Pictures of a run: the same prompts and noises, drawn before, during and after."""

from typing import Any

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


def fixed_pictures(session: Run) -> tuple[Tensor, list[str], list[dict[str, Any]], list[int]]:
    """The run's fixed pictures by the present model: images, prompts, metadata and seeds."""
    rows = spread(len(session.prompts), PICTURES)
    rows = (rows * PICTURES)[:PICTURES] if len(rows) < PICTURES else rows
    prompts = [session.prompts.prompts[row] for row in rows]
    metadata = [session.prompts.metadata[row] for row in rows]
    seeds = [image_seed("picture", session.config.seed, 0, i) for i in range(len(rows))]
    return session.draw(prompts, seeds), prompts, metadata, seeds


def score_pictures(session: Run, name: str | None) -> dict[str, Tensor]:
    """Draw the fixed pictures, save them as `images/NAME.png`, return each reward term [b]."""
    images, prompts, metadata, seeds = fixed_pictures(session)
    c = session.config
    if name is not None:
        save_image(
            session.folder / "images" / f"{name}.png",
            image_grid(images),
            prompt="\n".join(prompts),
            seed=c.seed,
            model=c.model,
            update=session.done,
            reward=c.reward,
            noise_seeds=seeds,
            **session.picture_settings,
        )
    with torch.no_grad(), seeded(image_seed("pictures", c.seed, session.done, 0)):
        return session.reward.terms(images, prompts, metadata)
