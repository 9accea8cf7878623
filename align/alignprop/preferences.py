"""Diffusion-DPO (Wallace et al. 2023, arXiv 2311.12908) on the model's own images, ranked by a
reward: no gradient of the reward, and none through the sampler."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pkgutil import resolve_name
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from align.alignprop.session import Session
from align.alignprop.update import BatchLoss, image_terms
from align.alignprop.windows import Draw
from align.config.train import METHODS, TrainConfig
from align.diffusion.denoisers import family_of
from align.diffusion.pixels import decode
from align.diffusion.sample import make_noise, sample
from align.language.prompts import draw_prompts
from align.models.lora import lora_disabled, lora_merged
from align.training.seeding import image_seed


def loss_of(config: TrainConfig) -> Callable[[Session, int, Sequence[int]], BatchLoss]:
    """The loss of the run's method."""
    return resolve_name(METHODS[config.method].loss)


def preference_loss(session: Session, update: int, indices: Sequence[int]) -> BatchLoss:
    """The loss on images of an update with these global indices: whole groups of one prompt each.

    In every group the best quarter by the reward is preferred to the worst, pair by pair, at
    `pair_timesteps` timesteps spread over the schedule; both of a pair get the same noise.
    Raises Diverged where a score or an image is not finite.
    """
    c = session.config
    groups = [index // c.group_size for index in indices[:: c.group_size]]
    rows = draw_prompts(len(session.prompts), seed=c.seed, update=update, indices=groups)
    rows = [row for row in rows for _ in range(c.group_size)]
    prompts = [session.prompts.prompts[row] for row in rows]
    metadata = [session.prompts.metadata[row] for row in rows]
    embeds = session.embed(prompts)
    latents, images = _draw(session, update, indices, embeds)
    terms = image_terms(session, images, prompts, metadata)
    scores = session.reward.combine(session.scale(terms) if session.scale else terms)
    best, worst = ranked_pairs(scores, c.group_size)
    repeats = c.pair_timesteps
    differs = (scores[best] > scores[worst]).repeat_interleave(repeats)
    pairs_a_group = len(best) // len(groups)
    noise, timesteps = _noises(session, update, groups, latents[:1], pairs_a_group)
    gains, distance = _gains(
        session,
        latents[torch.cat([best, worst])].repeat_interleave(repeats, 0),
        noise.repeat(2, 1, 1, 1),
        timesteps.repeat(2),
        {k: v[torch.cat([best, worst])].repeat_interleave(repeats, 0) for k, v in embeds.items()},
    )
    won, lost = gains.chunk(2)
    loss = (diffusion_dpo_loss(won, lost, c.beta) * differs).mean()
    return BatchLoss(
        loss=loss + c.kl_weight * distance,
        terms=terms,
        scores=session.reward.combine(terms),
        draw=Draw("dpo", ()),
        kl=distance.detach(),
        image_gradients={},
    )


def ranked_pairs(
    scores: Float[Tensor, " b"], group_size: int
) -> tuple[Int[Tensor, " p"], Int[Tensor, " p"]]:
    """Rows of the better and of the worse image of each pair: in every group the best quarter
    (at least one image) against the worst, the best with the worst first."""
    order = scores.view(-1, group_size).argsort(dim=1, stable=True)
    order = order + torch.arange(len(order), device=order.device)[:, None] * group_size
    count = pairs_of_group(group_size)
    return order[:, -count:].flip(1).flatten(), order[:, :count].flatten()


def pairs_of_group(group_size: int) -> int:
    """A quarter of the group, at least one."""
    return max(1, group_size // 4)


def diffusion_dpo_loss(
    won: Float[Tensor, " p"], lost: Float[Tensor, " p"], beta: float
) -> Float[Tensor, " p"]:
    """-log sigmoid(beta (won - lost)): equation 14 of arXiv 2311.12908, where `won` and `lost` are
    by how much the mean squared error of the model at an image is below the base model's."""
    return -F.logsigmoid(beta * (won - lost))


@torch.no_grad()
def _draw(
    session: Session, update: int, indices: Sequence[int], embeds: dict[str, Tensor]
) -> tuple[Float[Tensor, "b c h w"], Float[Tensor, "b 3 height width"]]:
    """Latents and images of the present model, each from the noise of its global index."""
    c, pipe = session.config, session.pipe
    denoise = session.denoiser(embeds)
    seeds = [image_seed("noise", c.seed, update, index) for index in indices]
    # Sharded weights cannot be added to.
    with nullcontext() if c.shard else lora_merged(pipe):
        latents = sample(
            denoise,
            pipe.scheduler,
            make_noise(pipe, seeds, c.height, c.width),
            num_inference_steps=c.num_inference_steps,
            eta=c.eta,
            generator=[
                torch.Generator().manual_seed(image_seed("eta", c.seed, update, index))
                for index in indices
            ],
        )
    return latents, decode(pipe, latents)


def _noises(
    session: Session, update: int, groups: Sequence[int], like: Tensor, pairs: int
) -> tuple[Float[Tensor, "n c h w"], Int[Tensor, " n"]]:
    """The noise and the timestep of every pair and repeat, one group after the other.

    One timestep lies in each of `pair_timesteps` equal parts of the training schedule.
    """
    c, count = session.config, len(session.pipe.scheduler.alphas_cumprod)
    noises, timesteps = [], []
    for group in groups:
        generator = torch.Generator().manual_seed(image_seed("pairs", c.seed, update, group))
        shape = (pairs * c.pair_timesteps, *like.shape[1:])
        noises.append(torch.randn(shape, generator=generator, dtype=torch.float32))
        within = torch.rand((pairs, c.pair_timesteps), generator=generator)
        parts = (torch.arange(c.pair_timesteps) + within) / c.pair_timesteps
        timesteps.append((parts * count).long().clamp(max=count - 1).flatten())
    return torch.cat(noises).to(like), torch.cat(timesteps).to(like.device)


def _gains(
    session: Session,
    latents: Float[Tensor, "n c h w"],
    noise: Float[Tensor, "n c h w"],
    timesteps: Int[Tensor, " n"],
    embeds: dict[str, Tensor],
) -> tuple[Float[Tensor, " n"], Float[Tensor, ""]]:
    """By how much the model's error at the noised latents is below the base's, and the mean
    squared distance of the two predictions."""
    c, pipe = session.config, session.pipe
    # A scale that is the model's input (LCM) stays that of the images; one that mixes two outputs
    # is no part of the model that is compared.
    mixed = family_of(pipe).is_guided(pipe, c.guidance_scale)
    scale = 1.0 if mixed else c.guidance_scale
    denoise = session.denoiser(embeds, guidance_scale=scale, checkpointing=c.checkpointing)
    clean = latents * denoise.latent_scale
    share = pipe.scheduler.alphas_cumprod.to(clean)[timesteps].view(-1, 1, 1, 1)
    noised = share.sqrt() * clean + (1 - share).sqrt() * noise
    target = _target(pipe.scheduler, clean, noise, share)
    with torch.no_grad(), lora_disabled(pipe):
        base = denoise(noised, timesteps).float()
    output = denoise(noised, timesteps).float()
    errors, base_errors = (
        (prediction - target).square().flatten(1).mean(1) for prediction in (output, base)
    )
    return base_errors - errors, (output - base).square().mean()


def _target(
    scheduler: Any, clean: Tensor, noise: Tensor, share: Tensor
) -> Float[Tensor, "n c h w"]:
    """What the model should predict, by the scheduler's `prediction_type`."""
    kind = scheduler.config.prediction_type
    if kind == "v_prediction":
        return share.sqrt() * noise - (1 - share).sqrt() * clean
    return noise if kind == "epsilon" else clean
