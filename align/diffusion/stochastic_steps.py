"""A denoising step as a Gaussian of the present latents: the policy of Flow-GRPO.

With flow matching x_t = (1 - sigma) x_0 + sigma e. Both kinds of step leave the distribution of the
latents at each noise level as the deterministic sampler has it.
"""

import math
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from align.diffusion.forward_process import prediction_kind

Step = Literal["sde", "cps"]


def check_stochastic(scheduler: Any, noise_level: float, step: Step) -> None:
    """Raise ValueError for a sampler whose step is not known as a Gaussian, or too much noise."""
    name = type(scheduler).__name__
    if noise_level > 1 and (name == "DDIMScheduler" or step == "cps"):
        raise ValueError(f"noise_level is {noise_level}; with DDIM and cps it must be at most 1")
    if name not in ("FlowMatchEulerDiscreteScheduler", "DDIMScheduler"):
        raise ValueError(
            f"method is 'grpo', which draws by FlowMatchEulerDiscreteScheduler or DDIMScheduler, "
            f"and the model's sampler is {name}: give --scheduler"
        )


def stochastic_step(
    scheduler: Any,
    index: int,
    timestep: Tensor,
    latents: Float[Tensor, "b c h w"],
    output: Float[Tensor, "b c h w"],
    noise_level: float,
    step: Step = "sde",
) -> tuple[Float[Tensor, "b c h w"], float]:
    """The mean and the deviation of the latents after step number `index`.

    `noise_level` 0 is the sampler's own step. Flow matching: "sde" is Flow-GRPO's (2505.05470,
    equation 9, with sigma = 1 under the root replaced by the second sigma, as in the published
    code), "cps" keeps the coefficients of image and noise exact. Variance preserving: DDIM's step
    with this eta, which keeps them as well, so that `step` does not matter.
    """
    if prediction_kind(scheduler) != "flow":
        return _ddim(scheduler, timestep, latents, output, noise_level)
    sigmas = scheduler.sigmas.double().tolist()
    sigma, after = sigmas[index], sigmas[index + 1]
    if step == "cps":
        clean, noise = latents - sigma * output, latents + (1 - sigma) * output
        angle = noise_level * math.pi / 2
        mean = (1 - after) * clean + after * math.cos(angle) * noise
        return mean, after * math.sin(angle)
    change = after - sigma
    g = noise_level * math.sqrt(sigma / (1 - (sigmas[1] if sigma == 1 else sigma)))
    drift = g * g / (2 * sigma) * change
    mean = latents * (1 + drift) + output * (change + drift * (1 - sigma))
    return mean, g * math.sqrt(-change)


def _ddim(
    scheduler: Any, timestep: Tensor, latents: Tensor, output: Tensor, eta: float
) -> tuple[Tensor, float]:
    """Diffusers' step without its noise, and what that noise would be multiplied by."""
    nothing = torch.zeros_like(latents)
    mean = scheduler.step(output, timestep, latents, eta=eta, variance_noise=nothing)[0]
    former = int(timestep) - scheduler.config.num_train_timesteps // scheduler.num_inference_steps
    share = scheduler.alphas_cumprod[int(timestep)].double()
    after = scheduler.alphas_cumprod[former] if former >= 0 else scheduler.final_alpha_cumprod
    variance = (1 - after.double()) / (1 - share) * (1 - share / after.double())
    return mean, eta * math.sqrt(variance.item())


def log_probability(
    after: Float[Tensor, "b c h w"], mean: Float[Tensor, "b c h w"], deviation: float
) -> Float[Tensor, " b"]:
    """Of a step's result: the Gaussian's log density as a mean over elements, as published."""
    square = ((after - mean) / deviation).square().flatten(1).mean(1)
    return -square / 2 - math.log(deviation) - math.log(2 * math.pi) / 2
