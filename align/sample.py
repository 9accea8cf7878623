"""`sample`: the one denoising loop, differentiable; `decode` and `generate` around it."""

import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from diffusers.utils.torch_utils import randn_tensor
from jaxtyping import Float
from torch import Tensor

from align.denoisers import (
    Denoiser,
    default_steps,
    denoiser_module,
    family_of,
    image_size,
    latent_shape,
    make_denoiser,
)
from align.pixels import decode

Generators = torch.Generator | list[torch.Generator] | None
GradSteps = int | Literal["all"]
OnStep = Callable[[int, Tensor, Tensor], None]


def sample(
    denoise: Callable[[Tensor, Tensor], Tensor],
    scheduler: Any,
    noise: Float[Tensor, "b c h w"],
    *,
    num_inference_steps: int,
    timesteps: list[int] | None = None,
    grad_steps: GradSteps = 0,
    eta: float = 0.0,
    generator: Generators = None,
    on_step: OnStep | None = None,
    start: int = 0,
    stop: int | None = None,
) -> Float[Tensor, "b c h w"]:
    """Denoise `noise` (unit variance) to latents with any diffusers scheduler.

    The graph is kept through the last `grad_steps` steps ("all": through all, and to `noise`);
    the steps before run without gradient. The scheduler is copied, so a run leaves no state.
    `eta` and `generator` reach schedulers that take them; `timesteps` replaces the spacing.
    `on_step(index, timestep, latents)` is called after each step. `start` and `stop` run a part:
    `noise` then holds the latents before step `start`, the result those before step `stop`.

    Raises ValueError for a count out of range, for noise that wants a gradient the truncation
    would cut off, and for a scheduler whose `step` is not differentiable.
    """
    check_steps(num_inference_steps, grad_steps, eta)
    scale = denoise.latent_scale if isinstance(denoise, Denoiser) else 1.0
    scheduler, schedule = prepare_scheduler(
        denoise, scheduler, num_inference_steps, noise.device, timesteps
    )
    # Schedulers of second order (Heun) call the denoiser `order` times a step, the last once.
    kept = num_inference_steps if grad_steps == "all" else grad_steps
    first = scheduler.order * (num_inference_steps - kept)
    if torch.is_grad_enabled() and noise.requires_grad and first > start:
        raise ValueError(
            f"the noise requires a gradient, but grad_steps is {grad_steps} of "
            f"{num_inference_steps} steps and would cut it off; use grad_steps='all'"
        )
    if torch.is_grad_enabled() and kept:
        check_differentiable(denoise, scheduler, num_inference_steps, timesteps)
    extra = step_arguments(scheduler, eta, generator)
    x0_only = isinstance(denoise, Denoiser) and denoise.one_step_x0 and len(schedule) == 1

    latents = noise * scale
    if start == 0:
        latents = latents * getattr(scheduler, "init_noise_sigma", 1.0)  # flow matching has none
    for index, timestep in enumerate(schedule[:stop]):
        if index < start:
            continue
        with torch.set_grad_enabled(torch.is_grad_enabled() and index >= first):
            scaled = latents
            if hasattr(scheduler, "scale_model_input"):  # flow matching has none
                scaled = scheduler.scale_model_input(latents, timestep)
            output = denoise(scaled, timestep)
            after = scheduler.step(output, timestep, latents, **extra, return_dict=False)
            latents = after[1] if x0_only else after[0]
        if on_step is not None:
            on_step(index, timestep, latents / scale)
    return latents / scale


def generate(
    pipe: Any,
    prompts: Sequence[str] | str,
    *,
    negative_prompts: Sequence[str] | str | None = None,
    seed: int | None = None,
    generator: Generators = None,
    latents: Float[Tensor, "b ..."] | None = None,
    num_inference_steps: int | None = None,
    timesteps: list[int] | None = None,
    guidance_scale: float | None = None,
    eta: float = 0.0,
    height: int | None = None,
    width: int | None = None,
    max_sequence_length: int | None = None,
    grad_steps: GradSteps = 0,
    checkpointing: bool = False,
    on_step: OnStep | None = None,
) -> Float[Tensor, "b 3 height width"]:
    """Images in [0, 1], one per prompt: those of the pipeline's own `__call__`.

    None means the pipeline's default; distilled models take 1 step without guidance. Image i
    starts from `latents[i]`, else from noise of the generator, else of its own CPU generator
    seeded with `seed + i`, else of the global one. `grad_steps=K` keeps the graph through the
    last K steps, "all" through all steps and to `latents`.

    Raises ValueError for prompts, sizes or counts that do not fit.
    """
    prompts = [prompts] if isinstance(prompts, str) else list(prompts)
    steps = len(timesteps) if timesteps else num_inference_steps
    steps = default_steps(pipe) if steps is None else steps
    check_steps(steps, grad_steps, eta)
    if seed is not None and generator is not None:
        raise ValueError("seed and generator are both given; give one of them")
    if seed is not None:
        generator = [torch.Generator().manual_seed(seed + i) for i in range(len(prompts))]
    if isinstance(generator, list) and len(generator) != len(prompts):
        raise ValueError(f"{len(generator)} generators for {len(prompts)} prompts; give one each")
    with torch.set_grad_enabled(torch.is_grad_enabled() and grad_steps != 0):
        denoise = make_denoiser(
            pipe,
            prompts,
            negative_prompts=negative_prompts,
            guidance_scale=guidance_scale,
            checkpointing=checkpointing,
            height=height,
            width=width,
            max_sequence_length=max_sequence_length,
        )
        noise = _starting_noise(pipe, len(prompts), latents, generator, height, width)
        final = sample(
            denoise,
            pipe.scheduler,
            noise,
            num_inference_steps=steps,
            timesteps=timesteps,
            grad_steps=grad_steps,
            eta=eta,
            generator=generator,
            on_step=on_step,
        )
        return decode(pipe, final, checkpointing=checkpointing)


def make_noise(
    pipe: Any, seeds: Sequence[int], height: int | None = None, width: int | None = None
) -> Float[Tensor, "b c h w"]:
    """Unit-variance noise for images of this size in pixels, row i from `seeds[i]` alone."""
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    return _starting_noise(pipe, len(generators), None, generators, height, width)


def past_the_noise(
    pipe: Any, seeds: Sequence[int], height: int | None = None, width: int | None = None
) -> list[torch.Generator]:
    """Generators of these seeds that have drawn the starting noise: what a sampler draws next is
    independent of it, and the same as in a run that starts from the seed."""
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    _starting_noise(pipe, len(generators), None, generators, height, width)
    return generators


def check_steps(num_inference_steps: int, grad_steps: GradSteps, eta: float) -> None:
    """Raise ValueError where a setting of the loop is out of range."""
    if num_inference_steps < 1:
        raise ValueError(f"num_inference_steps is {num_inference_steps}; it must be at least 1")
    if grad_steps != "all" and not (
        isinstance(grad_steps, int) and 0 <= grad_steps <= num_inference_steps
    ):
        raise ValueError(
            f"grad_steps is {grad_steps!r}; it must be 'all' or a count from 0 to "
            f"num_inference_steps, which is {num_inference_steps}"
        )
    if not 0 <= eta <= 1:
        raise ValueError(f"eta is {eta}; it must be from 0 to 1")


def prepare_scheduler(
    denoise: Callable[[Tensor, Tensor], Tensor],
    scheduler: Any,
    num_inference_steps: int,
    device: torch.device,
    timesteps: list[int] | None = None,
) -> tuple[Any, Tensor]:
    """A fresh copy of the scheduler, set for this many steps, and the timesteps to visit."""
    fresh = type(scheduler).from_config(scheduler.config)
    if isinstance(denoise, Denoiser):
        return fresh, denoise.set_timesteps(fresh, num_inference_steps, device, timesteps)
    if timesteps is not None:
        fresh.set_timesteps(timesteps=timesteps, device=device)
    else:
        fresh.set_timesteps(num_inference_steps, device=device)
    return fresh, fresh.timesteps


def step_arguments(scheduler: Any, eta: float, generator: Generators) -> dict[str, Any]:
    """Those of `eta` and `generator` that this scheduler's `step` takes."""
    parameters = inspect.signature(scheduler.step).parameters
    alphas = getattr(scheduler, "alphas_cumprod", None)
    if alphas is not None and float(alphas[-1]) == 0:
        # at zero signal DDIM takes the root of 1 - alpha - sigma^2, by eta = 1 a rounding error
        eta = min(eta, 1 - 1e-6)
    offered = {"eta": eta, "generator": generator}
    return {name: value for name, value in offered.items() if name in parameters}


def check_differentiable(
    denoise: Callable[[Tensor, Tensor], Tensor],
    scheduler: Any,
    num_inference_steps: int,
    timesteps: list[int] | None,
) -> None:
    """Raise ValueError naming a scheduler whose step gives the model output no gradient.

    Found out by trying: a copy takes its first two steps on tiny tensors.
    """
    probe, schedule = prepare_scheduler(
        denoise, scheduler, num_inference_steps, torch.device("cpu"), timesteps
    )
    outputs = torch.full((2, 1, 1, 2, 2), 0.1, requires_grad=True)
    extra = step_arguments(probe, 0.0, torch.Generator().manual_seed(0))
    latents, reason = torch.full((1, 1, 2, 2), 0.1), "the gradient it gives is zero or not finite"
    try:
        for output, timestep in zip(outputs, schedule, strict=False):
            if hasattr(probe, "scale_model_input"):
                probe.scale_model_input(latents, timestep)
            latents = probe.step(output, timestep, latents, **extra, return_dict=False)[0]
        (grad,) = torch.autograd.grad(latents.sum(), outputs)
        if grad.isfinite().all() and grad.abs().sum() > 0:
            return
    except (RuntimeError, TypeError, ValueError) as error:
        reason = str(error).splitlines()[0]
    raise ValueError(
        f"{type(scheduler).__name__} cannot be differentiated ({reason}); use grad_steps=0 or "
        "another scheduler, such as DDIMScheduler"
    )


def _starting_noise(
    pipe: Any,
    batch: int,
    latents: Tensor | None,
    generator: Generators,
    height: int | None,
    width: int | None,
) -> Tensor:
    """The latents given, checked, or new noise from the generator, as the pipelines draw it."""
    family, device = family_of(pipe), denoiser_module(pipe).device
    shape = (batch, *latent_shape(pipe, height, width))
    if latents is None:
        dtype = family.noise_dtype(pipe)
        return randn_tensor(shape, generator=generator, device=device, dtype=dtype)
    if family.unpack_latents and latents.ndim == 3 and latents.numel() == math.prod(shape):
        latents = family.unpack_latents(pipe, latents, *image_size(pipe, height, width))
    if latents.shape != shape:
        raise ValueError(f"latents have shape {tuple(latents.shape)}; this run needs {shape}")
    return latents.to(device)
