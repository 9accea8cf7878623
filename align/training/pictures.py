"""Pictures of a run: the same prompts and noises, drawn before, during and after."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from align.denoisers import make_denoiser
from align.pixels import decode
from align.run import image_grid, save_image
from align.sample import make_noise, sample
from align.training.runs import Run
from align.training.seeding import seeded
from align.training.session import Session
from align.training.windows import image_seed

PICTURES = 8


@torch.no_grad()
def draw(
    session: Session, prompts: list[str], seeds: list[int], batch: int = 8
) -> Float[Tensor, "b 3 h w"]:
    """Images of the present model, one per prompt, from the noise of its seed, with the
    training's own steps and guidance."""
    c, pipe, parts = session.config, session.pipe, []
    for start in range(0, len(prompts), batch):
        piece = slice(start, start + batch)
        denoise = make_denoiser(
            pipe,
            None,
            guidance_scale=c.guidance_scale,
            height=c.height,
            width=c.width,
            prompt_embeds=session.embed(prompts[piece]),
        )
        latents = sample(
            denoise,
            pipe.scheduler,
            make_noise(pipe, seeds[piece], c.height, c.width),
            num_inference_steps=c.num_inference_steps,
            eta=c.eta,
            generator=[torch.Generator().manual_seed(seed + 1) for seed in seeds[piece]],
        )
        parts.append(decode(pipe, latents))
    return torch.cat(parts)


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
