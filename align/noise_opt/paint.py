"""`make_painter`: noise to images for one prompt, the same map in every iteration."""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from align.diffusion.denoisers import Denoiser, encode_prompts, family_of, make_denoiser
from align.diffusion.pixels import decode
from align.diffusion.prediction import predict_x0
from align.diffusion.sample import check_steps, past_the_noise, sample

# (noise, stop) to images in [0, 1]: of the final latents, or of x_0 as predicted after `stop` steps
Painter = Callable[..., Float[Tensor, "n 3 height width"]]

PREVIEW = 0.3  # of the steps


def make_painter(
    pipe: Any,
    prompt: str,
    *,
    num_inference_steps: int,
    guidance_scale: float | None = None,
    grad_steps: int | None = None,
    seed: int = 0,
    checkpointing: bool = False,
    height: int | None = None,
    width: int | None = None,
) -> Painter:
    """A function from float32 noise of unit variance to images in [0, 1].

    Noise that requires a gradient gets one, through the last `grad_steps` steps (None: all); the
    steps before then count as the identity. Samplers that draw noise of their own draw the same
    one every time, that of `align.generate` with this seed. Works in the model's precision.

    Raises ValueError where grad_steps is out of range, or the sampler remembers former steps and
    cannot be cut in two.
    """
    grad_steps = check_grad_steps(pipe, num_inference_steps, grad_steps)
    embeds = encode_prompts(pipe, prompt, guidance_scale=guidance_scale)
    dtype = family_of(pipe).noise_dtype(pipe)

    def paint(noise: Tensor, stop: int | None = None) -> Tensor:
        denoise = make_denoiser(
            pipe,
            None,
            guidance_scale=guidance_scale,
            checkpointing=checkpointing,
            height=height,
            width=width,
            prompt_embeds={k: v.repeat_interleave(len(noise), 0) for k, v in embeds.items()},
        )
        generator = past_the_noise(pipe, [seed] * len(noise), height, width)
        if stop is not None:
            run = {"num_inference_steps": num_inference_steps, "generator": generator}
            noise = noise.to(dtype)
            if stop > 1:
                noise = sample(denoise, pipe.scheduler, noise, stop=stop - 1, **run)
            x0 = predict_x0(
                denoise, pipe.scheduler, noise, num_inference_steps, stop - 1, 0.0, generator
            )
            return decode(pipe, x0)
        latents = final_latents(
            pipe, denoise, noise.to(dtype), num_inference_steps, grad_steps, generator
        )
        return decode(pipe, latents, checkpointing=checkpointing)

    return paint


def check_grad_steps(pipe: Any, num_inference_steps: int, grad_steps: int | None) -> int:
    """How many of the last steps give noise a gradient, None meaning all; raises ValueError as
    `make_painter`."""
    grad_steps = num_inference_steps if grad_steps is None else grad_steps
    check_steps(num_inference_steps, grad_steps, 0.0)
    if grad_steps < num_inference_steps and type(pipe.scheduler).__name__ not in _MEMORYLESS:
        raise ValueError(
            f"grad_steps is {grad_steps} of {num_inference_steps} steps; with "
            f"{type(pipe.scheduler).__name__} noise takes its gradient through all of them. "
            f"Fewer work with {', '.join(sorted(_MEMORYLESS))}"
        )
    return grad_steps


def final_latents(
    pipe: Any,
    denoise: Denoiser,
    noise: Float[Tensor, "b c h w"],
    num_inference_steps: int,
    grad_steps: int,
    generator: list[torch.Generator],
) -> Float[Tensor, "b c h w"]:
    """What the sampler makes of noise, in its precision; where the noise requires a gradient it
    gets one through the last `grad_steps` steps, those before as the identity."""
    run: dict[str, Any] = {"num_inference_steps": num_inference_steps, "generator": generator}
    if not (torch.is_grad_enabled() and noise.requires_grad):
        return sample(denoise, pipe.scheduler, noise, **run)
    cut = num_inference_steps - grad_steps
    if cut:
        with torch.no_grad():
            before = sample(denoise, pipe.scheduler, noise, stop=cut, **run)
        noise = before + noise - noise.detach()
    start = cut or None  # None: what is given is noise
    return sample(denoise, pipe.scheduler, noise, start=start, grad_steps=grad_steps, **run)


def preview_steps(pipe: Any, num_inference_steps: int) -> int:
    """After how many steps the predicted x_0 tells which noises are hopeless: three tenths of all,
    but 0 for samplers of few steps and those that remember former ones."""
    able = type(pipe.scheduler).__name__ in _MEMORYLESS
    return round(PREVIEW * num_inference_steps) if able and num_inference_steps >= 5 else 0


# Schedulers of first order whose step depends on nothing but the latents and the timestep.
_MEMORYLESS = {
    "DDIMScheduler",
    "DDPMScheduler",
    "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
    "FlowMatchEulerDiscreteScheduler",
    "LCMScheduler",
}
