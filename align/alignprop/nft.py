"""DiffusionNFT (arXiv 2509.16117): online RL on the forward process, no gradient of the reward.

Images of a prompt are drawn in groups. Those that a reward prefers pull the denoiser towards
themselves, the others push it away, each by its advantage in its group, at noised versions of the
images. With no old policy (`old_decay` 0) the gradient is that of ELBO-RL's EPG (2602.04663) and of
V-GRPO (2604.23380) on policy: advantage times the gradient of the self-normalised error.

Departures from the published code: the noises and timesteps are shared within a group, so that what
its images have in common cancels; advantages are divided by a running deviation, so that an update
does not depend on how it is split into forward passes.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from align.alignprop.drawn import Drawn, draw_groups, group_noises, learning_denoiser, own_scores
from align.alignprop.update import BatchLoss, running_spread
from align.alignprop.windows import Draw
from align.diffusion.forward_process import (
    coefficients,
    corrupt,
    error_weight,
    prediction_kind,
    self_normalized,
    target,
)
from align.models.lora import lora_disabled
from align.training.runs import Run
from align.training.seeding import image_seed, seeded

LIMIT = 5.0  # of an advantage, either way
SMALL = 1e-4  # added to a deviation
MEAN_SCALE = 0.1  # ELBO-RL's: advantages are a tenth of the reward's difference
OLD_RATE = 0.001  # of the decay's rise, an update

Error = Callable[[Tensor, Tensor, Tensor], Tensor]


def advantages(
    scores: Float[Tensor, " b"], group_size: int, scale: float | None
) -> Float[Tensor, " b"]:
    """Each score less its group's mean, divided by `scale` (None: by the group's own deviation),
    within ±5. Groups stand one after the other; images of a group that ties, or that has no scores
    (NaN), get 0."""
    groups = scores.view(-1, group_size)
    centred = groups - groups.mean(1, keepdim=True)
    spread = groups.std(1, correction=0, keepdim=True) if scale is None else scale
    return (centred / (spread + SMALL)).clamp(-LIMIT, LIMIT).nan_to_num(0.0).flatten()


def optimality(advantage: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
    """The probability that an image is a good one: 1/2 at its group's mean, 0 and 1 at ±5."""
    return advantage / (2 * LIMIT) + 0.5


def nft_loss(
    output: Float[Tensor, "n ..."],
    old: Float[Tensor, "n ..."],
    right: Float[Tensor, "n ..."],
    probability: Float[Tensor, " n"],
    weight: Float[Tensor, " n"],
    beta: float,
    error: Error = self_normalized,
) -> Float[Tensor, " n"]:
    """5 (r l(o+) + (1 - r) l(o-)) / beta (equation 9 and the published code).

    o+ = beta o + (1 - beta) o_old is the good branch, o- = (1 + beta) o_old - beta o the bad one,
    both affine in the output, so that this holds for any prediction type. `old` has no gradient.
    """
    good = beta * output + (1 - beta) * old
    bad = (1 + beta) * old - beta * output
    r = probability.to(output)
    return LIMIT * (r * error(good, right, weight) + (1 - r) * error(bad, right, weight)) / beta


def forward_loss(run: Run, update: int, indices: Sequence[int]) -> BatchLoss:
    """The loss on images of an update with these global indices: whole groups of one prompt each.

    At each of `pair_timesteps` timesteps, one in each part of the schedule, one denoiser call.
    Raises Diverged where a score or an image is not finite.
    """
    c, pipe = run.config, run.pipe
    drawn = old_images(run, update, indices)
    terms, scores = own_scores(run, drawn, update, indices)
    advantage = group_advantages(run, scores)
    kind = prediction_kind(pipe.scheduler)
    assert kind is not None  # checked before the run
    denoise = learning_denoiser(run, drawn.embeds, drawn.latents)
    clean = drawn.latents * denoise.latent_scale
    noises, timesteps = group_noises(run, denoise, update, drawn.groups, clean[:1])
    losses, distances, moved = [], [], []
    for n in range(c.pair_timesteps):  # one of each group's at a time, which bounds the memory
        noise = noises[n :: c.pair_timesteps].repeat_interleave(c.group_size, 0)
        timestep = timesteps[n :: c.pair_timesteps].repeat_interleave(c.group_size)
        a, s = coefficients(pipe.scheduler, timestep)
        noised, right = corrupt(clean, noise, a, s), target(kind, clean, noise, a, s)
        output = denoise(noised, timestep).float()
        old = output.detach()
        with torch.no_grad():
            if run.sampler.old:
                with run.sampler.old():
                    old = denoise(noised, timestep).float()
            if c.kl_weight:
                with lora_disabled(pipe):
                    base = denoise(noised, timestep).float()
        losses.append(
            nft_loss(
                output, old, right, optimality(advantage), error_weight(kind, a, s), c.nft_beta
            )
        )
        moved.append((output - old).detach().abs().mean())
        if c.kl_weight:
            distances.append((output - base).square().mean())
    kl = torch.stack(distances).mean() if distances else None
    loss = torch.stack(losses).mean()
    return BatchLoss(
        loss=loss if kl is None else loss + c.kl_weight * kl,
        terms=terms,
        scores=run.reward.combine(terms),
        draw=Draw("nft", ()),
        kl=None if kl is None else kl.detach(),
        figures={
            "clipped": (advantage.abs() >= LIMIT).float().mean(),
            "moved": torch.stack(moved).mean(),
            "latent_norm": drawn.latents.detach().square().mean().sqrt(),
            "brightness": drawn.images.mean(),
        },
    )


def group_advantages(run: Run, scores: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
    """`advantages` of whole groups by the run's own scale (`--advantage`)."""
    scales = {"mean": 1 / MEAN_SCALE, "group": None, "running": run.course.get("spread")}
    return advantages(scores, run.config.group_size, scales[run.config.advantage])


def old_images(run: Run, update: int, indices: Sequence[int]) -> Drawn:
    """The images of an update, by the old policy where one is kept."""
    with run.sampler.old() if run.sampler.old else nullcontext():
        return draw_groups(run, update, indices)


def first_spread(run: Run) -> float:
    """The deviation of scores from their group's mean over the first update's images, which are
    drawn once more then: what the first advantages are divided by, however a batch is split."""
    c, accelerator = run.config, run.accelerator
    share = c.batch_size // accelerator.num_processes
    first, scores = accelerator.process_index * share, []
    for start in range(first, first + share, share // accelerator.gradient_accumulation_steps):
        size = share // accelerator.gradient_accumulation_steps
        indices = range(start, start + size)
        drawn = old_images(run, 0, indices)
        with seeded(image_seed("update", c.seed, 0, accelerator.process_index)):
            scores.append(own_scores(run, drawn, 0, indices)[1])
    run.failures = (-1, 0)  # the first update asks again
    gather: Any = accelerator.gather
    return running_spread(None, gather(torch.cat(scores)), c.group_size)


class OldPolicy:
    """The trained weights as they were, an average of decay min(0.001 n, ceiling) after update n.

    Calling it gives a context in which the model has them.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], ceiling: float):
        self.parameters, self.ceiling = list(parameters), ceiling
        self.weights = [p.detach().clone() for p in self.parameters]

    @contextmanager
    def __call__(self) -> Iterator[None]:
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    def _exchange(self) -> None:
        """Swap storages: nothing is copied, and a graph that waits for its backward pass finds its
        own weights again."""
        for index, parameter in enumerate(self.parameters):
            parameter.data, self.weights[index] = self.weights[index], parameter.data

    def follow(self, update: int) -> None:
        """Move towards the present weights, after update number `update` (from 1)."""
        rate = 1 - min(OLD_RATE * update, self.ceiling)
        for old, new in zip(self.weights, self.parameters, strict=True):
            old.lerp_(new.detach(), rate)
