"""What the methods share that need no gradient of the reward: images of the model's own, drawn in
groups of one prompt, and the noises at which the model learns from them."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from align.diffusion.denoisers import Denoiser, family_of
from align.diffusion.forward_process import prediction_kind
from align.diffusion.pixels import decode
from align.diffusion.sample import prepare_scheduler
from align.language.prompts import draw_prompts
from align.models.lora import lora_merged
from align.training.pictures import image_terms
from align.training.runs import Run
from align.training.seeding import image_seed


@dataclass(frozen=True)
class Drawn:
    """Images of whole groups, one group after the other, without gradient."""

    latents: Float[Tensor, "b c *f h w"]
    images: Float[Tensor, "b *t 3 height width"]
    prompts: list[str]
    metadata: list[dict[str, Any]]
    embeds: dict[str, Tensor]
    groups: list[int]
    """The groups' numbers within the update."""

    @property
    def ids(self) -> list[int]:
        """The number of each image's group."""
        size = len(self.images) // len(self.groups)
        return [group for group in self.groups for _ in range(size)]


@torch.no_grad()
def draw_groups(
    run: Run, update: int, indices: Sequence[int], draw: Callable[..., Tensor] | None = None
) -> Drawn:
    """The images of an update with these global indices by the present model: whole groups.

    `draw` stands in for the sampler's own `latents`."""
    c = run.config
    groups = [index // c.group_size for index in indices[:: c.group_size]]
    rows = draw_prompts(len(run.prompts), seed=c.seed, update=update, indices=groups)
    prompts, metadata = run.prompts.pick(rows, c.group_size)
    embeds = run.sampler.embed(prompts)
    seeds, eta_seeds = (
        [image_seed(purpose, c.seed, update, index) for index in indices]
        for purpose in ("noise", "eta")
    )
    # Sharded weights cannot be added to.
    with nullcontext() if run.sharded else lora_merged(run.pipe):
        latents = (draw or run.sampler.latents)(embeds, seeds, eta_seeds)
    return Drawn(latents, decode(run.pipe, latents), prompts, metadata, embeds, groups)


def own_scores(
    run: Run, drawn: Drawn, update: int, indices: Sequence[int]
) -> tuple[dict[str, Float[Tensor, " b"]], Float[Tensor, " b"]]:
    """The terms of the reward of these images, and the scores to compare them by."""
    terms = image_terms(
        run, drawn.images, drawn.prompts, drawn.metadata, drawn.ids, update, indices
    )
    return terms, run.reward.combine(run.scale(terms) if run.scale else terms)


def learning_denoiser(
    run: Run, embeds: dict[str, Tensor], latents: Float[Tensor, "_ c *f h w"]
) -> Denoiser:
    """The denoiser that is trained, for latents of this size. A guidance that is the model's input
    (FLUX, LCM) stays that of the images; one that mixes two outputs is no part of the model."""
    c, family = run.config, family_of(run.pipe)
    scales = (c.guidance_scale, 1.0, 0.0)  # to most families 1 is no guidance, to Z-Image 0
    scale = next(scale for scale in scales if not family.is_guided(run.pipe, scale))
    high, wide = (side * family.latent_factor(run.pipe) for side in latents.shape[-2:])
    return run.sampler.denoiser(
        embeds, guidance_scale=scale, checkpointing=c.checkpointing, height=high, width=wide
    )


def group_noises(
    run: Run,
    denoise: Denoiser,
    update: int,
    groups: Sequence[int],
    like: Float[Tensor, "_ c *f h w"],
    pairs: int = 1,
) -> tuple[Float[Tensor, "n c *f h w"], Float[Tensor, " n"] | Int[Tensor, " n"]]:
    """Noises and timesteps, `pairs` times `pair_timesteps` of them for one group after the other.

    One timestep lies in each of `pair_timesteps` equal parts of the training schedule; for flow
    matching of those timesteps that the sampler visits, whose shift belongs to the model.
    """
    c, scheduler = run.config, run.pipe.scheduler
    if prediction_kind(scheduler) == "flow":
        _, known = prepare_scheduler(denoise, scheduler, c.num_inference_steps, like.device)
        known = known.cpu().float()
    else:
        known = torch.arange(len(scheduler.alphas_cumprod))
    noises, timesteps = [], []
    for group in groups:
        generator = torch.Generator().manual_seed(image_seed("pairs", c.seed, update, group))
        shape = (pairs * c.pair_timesteps, *like.shape[1:])
        noises.append(torch.randn(shape, generator=generator, dtype=torch.float32))
        within = torch.rand((pairs, c.pair_timesteps), generator=generator)
        parts = (torch.arange(c.pair_timesteps) + within) / c.pair_timesteps
        timesteps.append(known[(parts * len(known)).long().clamp(max=len(known) - 1)].flatten())
    return torch.cat(noises).to(like), torch.cat(timesteps).to(like.device)
