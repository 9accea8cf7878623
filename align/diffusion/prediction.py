"""What x_0 a sampler predicts before it is done."""

from typing import Any

from jaxtyping import Float
from torch import Tensor

from align.diffusion.denoisers import Denoiser
from align.diffusion.sample import Generators, prepare_scheduler, step_arguments


def predict_x0(
    denoise: Denoiser,
    scheduler: Any,
    latents: Float[Tensor, "b c *f h w"],
    steps: int,
    index: int,
    eta: float,
    generator: Generators,
) -> Float[Tensor, "b c *f h w"]:
    """The scheduler's prediction of x_0 from one denoiser call at step `index`.

    Raises ValueError for a scheduler that does not tell its prediction.
    """
    scheduler, schedule = prepare_scheduler(denoise, scheduler, steps, latents.device)
    timestep, latents = schedule[index], latents * denoise.latent_scale
    scaled = latents
    if hasattr(scheduler, "scale_model_input"):  # flow matching has none
        scaled = scheduler.scale_model_input(latents, timestep)
    output = denoise(scaled, timestep)
    result = scheduler.step(output, timestep, latents, **step_arguments(scheduler, eta, generator))
    return clean_of(scheduler, result, latents, output, index) / denoise.latent_scale


def clean_of(scheduler: Any, result: Any, latents: Tensor, output: Tensor, index: int) -> Tensor:
    """The prediction of x_0 behind the result of a step. Raises ValueError where it is not told."""
    x0 = getattr(result, "pred_original_sample", None)
    if x0 is None:
        x0 = getattr(result, "denoised", None)  # the LCM scheduler's name for it
    if x0 is None and hasattr(scheduler, "scale_noise"):  # flow matching: x_t = x_0 + sigma v
        x0 = latents - scheduler.sigmas[index].to(latents) * output
    if x0 is None and keeps_x0(scheduler):
        x0 = scheduler.model_outputs[-1]
    if x0 is None:
        raise ValueError(
            f"{type(scheduler).__name__} does not tell its prediction of x_0, which grad_window "
            "'refl' needs; give --scheduler DDIMScheduler, or another window"
        )
    return x0


def keeps_x0(scheduler: Any) -> bool:
    """Whether a multistep solver (DPM-Solver++, UniPC) keeps predictions of x_0 for later steps."""
    kind = scheduler.config.get("algorithm_type") or ""
    return "++" in kind or scheduler.config.get("predict_x0", False)
