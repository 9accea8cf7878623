"""`ascend`: what a reward and a judge say along the reward's gradient, prompts in one batch."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from align.denoisers import default_steps, encode_prompts, family_of, make_denoiser
from align.noise_opt.paint import check_grad_steps, final_latents
from align.pixels import decode
from align.rewards.reward import Reward
from align.sample import make_noise, past_the_noise
from align.stress_config import What


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
) -> Iterator[Moment]:
    """Ascents of the reward, all prompts in one batch, prompt i from the noise of `seeds[i]`.

    A step is the gradient at `step_length` of the starting point's L2 norm. Noise is put back to
    its own norm after each, latents are not. Yields `steps` + 1 records.

    Raises:
        ValueError: the settings do not fit the pipeline, or the reward gives no gradient.
        RuntimeError: a score is not finite.
    """
    paint, point = _starts(
        pipe, prompts, seeds, what, num_inference_steps, guidance_scale, grad_steps, checkpointing
    )
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
        lengths = _norms(gradient)
        moves = lengths.isfinite() & (lengths > 0)
        images = images.detach()
        with torch.no_grad():
            judged = judge(images, prompts, metadata)
        for name, values in (("reward", scores), ("judge", judged)):
            if not values.isfinite().all():
                row = int((~values.isfinite()).nonzero()[0])
                raise RuntimeError(f"the {name} of {prompts[row]!r} is not finite at step {step}")
        yield Moment(step, scores.detach().cpu(), judged.cpu(), images, moves.flatten().cpu())
        moved = point.detach() - step_length * norms * gradient / lengths
        if what == "noise":
            moved = moved * (norms / _norms(moved))
        point = torch.where(moves, moved, point.detach())


def _starts(
    pipe: Any,
    prompts: Sequence[str],
    seeds: Sequence[int],
    what: What,
    num_inference_steps: int | None,
    guidance_scale: float | None,
    grad_steps: int | None,
    checkpointing: bool,
) -> tuple[Callable[[Tensor], Tensor], Float[Tensor, "b c h w"]]:
    """A map to pictures and where the ascents start, in float32: noise, or final latents."""
    steps = default_steps(pipe) if num_inference_steps is None else num_inference_steps
    kept = check_grad_steps(pipe, steps, grad_steps)
    denoise = make_denoiser(
        pipe,
        None,
        guidance_scale=guidance_scale,
        checkpointing=checkpointing,
        prompt_embeds=encode_prompts(pipe, list(prompts), guidance_scale=guidance_scale),
    )
    dtype = family_of(pipe).noise_dtype(pipe)

    def latents_of(noise: Tensor) -> Tensor:
        own = past_the_noise(pipe, seeds)  # the same in every step
        return final_latents(pipe, denoise, noise.to(dtype), steps, kept, own)

    def from_latents(latents: Tensor) -> Tensor:
        return decode(pipe, latents, checkpointing=checkpointing)

    noise = make_noise(pipe, seeds).float()
    if what == "noise":
        return lambda point: from_latents(latents_of(point)), noise
    with torch.no_grad():
        return from_latents, latents_of(noise).float()


def _norms(rows: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 1 1 1"]:
    return rows.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
