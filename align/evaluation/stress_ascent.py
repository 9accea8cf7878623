"""`ascend`: what a reward and a judge say along the reward's gradient, prompts in one batch."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from align.config.commands import What
from align.diffusion.denoisers import default_steps, family_of, make_denoiser
from align.diffusion.pixels import decode
from align.diffusion.sample import make_noise, past_the_noise
from align.noise_opt.paint import check_grad_steps, final_latents
from align.rewards.reward import Reward


@dataclass(frozen=True)
class Moment:
    """The ascents of some prompts after so many steps; step 0 is where they start."""

    step: int
    reward: Float[Tensor, " b"]
    judge: Float[Tensor, " b"]
    images: Float[Tensor, "b 3 h w"]
    moves: Bool[Tensor, " b"]
    """Whether there is a gradient to follow; one that is 0 or not finite leaves the point."""


def ascend(
    pipe: Any,
    prompts: Sequence[str],
    seeds: Sequence[int],
    reward: Reward,
    judge: Reward,
    *,
    metadata: Sequence[dict[str, Any]] | None = None,
    what: What = "noise",
    steps: int = 12,
    step_length: float = 1 / 64,
    num_inference_steps: int | None = None,
    guidance_scale: float | None = None,
    grad_steps: int | None = None,
    checkpointing: bool = False,
    height: int | None = None,
    width: int | None = None,
) -> Iterator[Moment]:
    """Ascents of the reward, all prompts in one batch, prompt i from the noise of `seeds[i]`.

    A step is the gradient at `step_length` of the starting point's L2 norm. Noise is put back to
    its own norm after each, latents are not. Yields `steps` + 1 records.

    Raises:
        ValueError: the settings do not fit the pipeline, or the reward gives no gradient.
        RuntimeError: a score is not finite.
    """
    own_steps = default_steps(pipe) if num_inference_steps is None else num_inference_steps
    kept = check_grad_steps(pipe, own_steps, grad_steps)
    denoise = make_denoiser(
        pipe,
        list(prompts),
        guidance_scale=guidance_scale,
        checkpointing=checkpointing,
        height=height,
        width=width,
    )

    def latents_of(noise: Tensor) -> Tensor:
        own = past_the_noise(pipe, seeds, height, width)  # the same in every step
        dtype = family_of(pipe).noise_dtype(pipe)
        return final_latents(pipe, denoise, noise.to(dtype), own_steps, kept, own)

    def paint(point: Tensor) -> Tensor:
        latents = latents_of(point) if what == "noise" else point
        return decode(pipe, latents, checkpointing=checkpointing)

    point = make_noise(pipe, seeds, height, width).float()
    if what == "latents":
        with torch.no_grad():
            point = latents_of(point).float()
    norms = _norms(point)
    for step in range(steps + 1):
        last = step == steps
        point = point.detach().requires_grad_(not last)
        with torch.set_grad_enabled(not last):
            images = paint(point)
            scores = reward(images, prompts, metadata)
        gradient = torch.zeros_like(point)
        if not last:  # of the negative: the clamp to [0, 1] is made for a loss
            (gradient,) = torch.autograd.grad(-scores.sum(), point)
        images, scores = images.detach(), scores.detach()
        with torch.no_grad():
            judged = judge(images, prompts, metadata)
        for name, values in (("reward", scores), ("judge", judged)):
            if not values.isfinite().all():
                row = int((~values.isfinite()).nonzero()[0])
                raise RuntimeError(f"the {name} of {prompts[row]!r} is not finite at step {step}")
        moves = (_norms(gradient) > 0) & _norms(gradient).isfinite()
        yield Moment(step, scores.cpu(), judged.cpu(), images, moves.flatten().cpu())
        moved = _descend(point.detach(), gradient, step_length * norms, what == "noise")
        point = torch.where(moves, moved, point.detach())


def _descend(
    point: Float[Tensor, "b c h w"],
    gradient: Float[Tensor, "b c h w"],
    lengths: Float[Tensor, "b 1 1 1"],
    on_sphere: bool,
) -> Float[Tensor, "b c h w"]:
    """The points after a step of these lengths against the gradient, at their norms if wanted."""
    moved = point - lengths * gradient / _norms(gradient)
    return moved * (_norms(point) / _norms(moved)) if on_sphere else moved


def _norms(rows: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 1 1 1"]:
    return rows.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
