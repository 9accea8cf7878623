"""Diffusion-DPO (Wallace et al. 2023, arXiv 2311.12908) on the model's own images, ranked by a
reward: no gradient of the reward, and none through the sampler."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from align.alignprop.drawn import draw_groups, group_noises, learning_denoiser, own_scores
from align.alignprop.update import BatchLoss
from align.alignprop.windows import Draw
from align.diffusion.denoisers import Denoiser
from align.diffusion.forward_process import coefficients, corrupt, prediction_kind, target
from align.models.lora import lora_disabled
from align.training.runs import Run


def preference_loss(run: Run, update: int, indices: Sequence[int]) -> BatchLoss:
    """The loss on images of an update with these global indices: whole groups of one prompt each.

    In every group the best quarter by the reward is preferred to the worst, pair by pair, at
    `pair_timesteps` timesteps spread over the schedule; both of a pair get the same noise.
    Raises Diverged where a score or an image is not finite.
    """
    c = run.config
    drawn = draw_groups(run, update, indices)
    terms, scores = own_scores(run, drawn, update, indices)
    best, worst = ranked_pairs(scores, c.group_size)
    repeats = c.pair_timesteps
    differs = (scores[best] > scores[worst]).repeat_interleave(repeats)
    both = torch.cat([best, worst])
    embeds = {k: v[both].repeat_interleave(repeats, 0) for k, v in drawn.embeds.items()}
    denoise = learning_denoiser(run, embeds, drawn.latents)
    pairs_a_group = len(best) // len(drawn.groups)
    noise, timesteps = group_noises(
        run, denoise, update, drawn.groups, drawn.latents[:1], pairs_a_group
    )
    better, distance = gains(
        run,
        denoise,
        drawn.latents[both].repeat_interleave(repeats, 0),
        noise.repeat(2, 1, 1, 1),
        timesteps.repeat(2),
    )
    won, lost = better.chunk(2)
    loss = (diffusion_dpo_loss(won, lost, c.beta) * differs).mean()
    return BatchLoss(
        loss=loss + c.kl_weight * distance,
        terms=terms,
        scores=run.reward.combine(terms),
        draw=Draw("dpo", ()),
        kl=distance.detach(),
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


def gains(
    run: Run,
    denoise: Denoiser,
    latents: Float[Tensor, "n c h w"],
    noise: Float[Tensor, "n c h w"],
    timesteps: Float[Tensor, " n"] | Int[Tensor, " n"],
) -> tuple[Float[Tensor, " n"], Float[Tensor, ""]]:
    """By how much the model's error at the noised latents is below the base's, and the mean
    squared distance of the two predictions."""
    pipe, clean = run.pipe, latents * denoise.latent_scale
    kind = prediction_kind(pipe.scheduler)
    assert kind is not None  # checked before the run
    a, s = coefficients(pipe.scheduler, timesteps)
    noised, right = corrupt(clean, noise, a, s), target(kind, clean, noise, a, s)
    with torch.no_grad(), lora_disabled(pipe):
        base = denoise(noised, timesteps).float()
    output = denoise(noised, timesteps).float()
    errors, base_errors = (
        (prediction - right).square().flatten(1).mean(1) for prediction in (output, base)
    )
    return base_errors - errors, (output - base).square().mean()
