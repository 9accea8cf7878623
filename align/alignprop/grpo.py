"""Flow-GRPO (arXiv 2505.05470): a policy gradient over the steps of the sampler itself.

Some steps of a drawing (`grad_window`) are drawn from a Gaussian around the sampler's own; steps of
images that a reward prefers to others of their prompt become likelier. Each drawing serves one
optimizer step, so that the ratio of new to old probability is 1, and clipping it would do nothing:
the loss is minus advantage times log-probability, which has the same gradient.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from align.alignprop.drawn import Drawn, draw_groups, own_scores
from align.alignprop.nft import LIMIT, group_advantages
from align.alignprop.update import BatchLoss
from align.alignprop.windows import Draw, draw_window
from align.diffusion.denoisers import Denoiser
from align.diffusion.sample import make_noise, prepare_scheduler, sample
from align.diffusion.stochastic_steps import log_probability, stochastic_step
from align.models.lora import lora_disabled
from align.training.runs import Run


@dataclass(frozen=True)
class Move:
    """A stochastic step that a drawing took: its number, and the latents before and after."""

    index: int
    before: Float[Tensor, "b c h w"]
    after: Float[Tensor, "b c h w"]


def policy_loss(run: Run, update: int, indices: Sequence[int]) -> BatchLoss:
    """The loss on images of an update with these global indices: whole groups of one prompt each.

    Raises Diverged where a score or an image is not finite.
    """
    c, pipe = run.config, run.pipe
    drawn, moves, draw = draw_moves(run, update, indices)
    terms, scores = own_scores(run, drawn, update, indices)
    advantage = group_advantages(run, scores)
    denoise = run.sampler.denoiser(drawn.embeds, checkpointing=c.checkpointing)
    losses, distances = [], []
    for move in moves:
        mean, deviation, output = step_of(run, denoise, move.index, move.before)
        losses.append(-(advantage * log_probability(move.after, mean, deviation)).mean())
        if c.kl_weight:
            with torch.no_grad(), lora_disabled(pipe):
                base = step_of(run, denoise, move.index, move.before)[2]
            distances.append((output - base).square().mean())
    kl = torch.stack(distances).mean() if distances else None
    loss = torch.stack(losses).mean()
    return BatchLoss(
        loss=loss if kl is None else loss + c.kl_weight * kl,
        terms=terms,
        scores=run.reward.combine(terms),
        draw=draw,
        kl=None if kl is None else kl.detach(),
        figures={
            "clipped": (advantage.abs() >= LIMIT).float().mean(),
            "latent_norm": drawn.latents.square().mean().sqrt(),
            "brightness": drawn.images.mean(),
        },
    )


def draw_moves(run: Run, update: int, indices: Sequence[int]) -> tuple[Drawn, list[Move], Draw]:
    """Images of an update, the stochastic steps that made them, and which those were.

    The last step of a schedule adds no noise, so the window is of those before it.
    """
    c = run.config
    draw = draw_window(
        run.sampler.window, c.window_steps, seed=c.seed, update=update, indices=indices
    )
    chosen = [n for n, row in enumerate(draw.kept) if any(row)]
    moves: list[Move] = []

    def latents(embeds: dict[str, Tensor], seeds: list[int], eta_seeds: list[int]) -> Tensor:
        denoise = run.sampler.denoiser(embeds)
        generators = [torch.Generator().manual_seed(seed) for seed in eta_seeds]
        found, done = make_noise(run.pipe, seeds, c.height, c.width), 0
        for index in [*chosen, c.num_inference_steps]:
            if index > done:
                found = sample(
                    denoise, run.pipe.scheduler, found, start=done, stop=index,
                    num_inference_steps=c.num_inference_steps,
                )  # fmt: skip
            if index == c.num_inference_steps:
                break
            mean, deviation, _ = step_of(run, denoise, index, found)
            drawn = [torch.randn(found.shape[1:], generator=one) for one in generators]
            after = mean + deviation * torch.stack(drawn).to(mean)
            moves.append(Move(index, found, after))
            found, done = after.to(found.dtype), index + 1
        return found

    return draw_groups(run, update, indices, latents), moves, draw


def step_of(
    run: Run, denoise: Denoiser, index: int, before: Float[Tensor, "b c h w"]
) -> tuple[Float[Tensor, "b c h w"], float, Float[Tensor, "b c h w"]]:
    """The Gaussian of step number `index` from these latents (mean, deviation), and the denoiser's
    output; in float32 or what is finer."""
    c = run.config
    scheduler, schedule = prepare_scheduler(
        denoise, run.pipe.scheduler, c.num_inference_steps, before.device
    )
    scale = denoise.latent_scale
    latents, timestep = before * scale, schedule[index]
    output: Any = denoise(latents, timestep)
    precise = torch.promote_types(output.dtype, torch.float32)
    mean, deviation = stochastic_step(
        scheduler, index, timestep, latents.to(precise), output.to(precise),
        c.noise_level, c.stochastic_step,
    )  # fmt: skip
    return mean / scale, deviation / scale, output.to(precise)
