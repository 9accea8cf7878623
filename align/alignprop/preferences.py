"""Diffusion-DPO (Wallace et al. 2023, arXiv 2311.12908) on the model's own images, ranked by a
reward: no gradient of the reward, and none through the sampler."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from align.alignprop.drawn import draw_groups, group_noises, learning_denoiser
from align.alignprop.session import Session
from align.alignprop.update import BatchLoss, batch_loss, image_terms
from align.alignprop.windows import Draw
from align.config.train import TrainConfig
from align.diffusion.denoisers import Denoiser
from align.diffusion.forward_process import coefficients, corrupt, prediction_kind, target
from align.models.lora import lora_disabled


def loss_of(config: TrainConfig) -> Callable[[Session, int, Sequence[int]], BatchLoss]:
    """The loss of the run's method."""
    return preference_loss if config.method == "dpo" else batch_loss


def preference_loss(session: Session, update: int, indices: Sequence[int]) -> BatchLoss:
    """The loss on images of an update with these global indices: whole groups of one prompt each.

    In every group the best quarter by the reward is preferred to the worst, pair by pair, at
    `pair_timesteps` timesteps spread over the schedule; both of a pair get the same noise.
    Raises Diverged where a score or an image is not finite.
    """
    c = session.config
    drawn = draw_groups(session, update, indices)
    terms = image_terms(session, drawn.images, drawn.prompts, drawn.metadata)
    scores = session.reward.combine(session.scale(terms) if session.scale else terms)
    best, worst = ranked_pairs(scores, c.group_size)
    repeats = c.pair_timesteps
    differs = (scores[best] > scores[worst]).repeat_interleave(repeats)
    both = torch.cat([best, worst])
    embeds = {k: v[both].repeat_interleave(repeats, 0) for k, v in drawn.embeds.items()}
    denoise = learning_denoiser(session, embeds)
    pairs_a_group = len(best) // len(drawn.groups)
    noise, timesteps = group_noises(
        session, denoise, update, drawn.groups, drawn.latents[:1], pairs_a_group
    )
    gains, distance = _gains(
        session,
        denoise,
        drawn.latents[both].repeat_interleave(repeats, 0),
        noise.repeat(2, 1, 1, 1),
        timesteps.repeat(2),
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


def _gains(
    session: Session,
    denoise: Denoiser,
    latents: Float[Tensor, "n c h w"],
    noise: Float[Tensor, "n c h w"],
    timesteps: Float[Tensor, " n"] | Int[Tensor, " n"],
) -> tuple[Float[Tensor, " n"], Float[Tensor, ""]]:
    """By how much the model's error at the noised latents is below the base's, and the mean
    squared distance of the two predictions."""
    pipe, clean = session.pipe, latents * denoise.latent_scale
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
