"""`sample`: the one denoising loop, differentiable; `decode` and `generate` around it."""

import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from diffusers.utils.torch_utils import randn_tensor
from jaxtyping import Float
from torch import Tensor

from align.diffusion.denoisers import (
    Denoiser,
    default_steps,
    denoiser_module,
    family_of,
    image_size,
    latent_shape,
    make_denoiser,
)
from align.diffusion.finite import check_finite
from align.diffusion.pixels import decode
from align.diffusion.schedules import (
    check_eta,
    copy_scheduler,
    enter_at,
    set_timesteps,
    step_of_calls,
)
from align.runs.files import brief

Generators = torch.Generator | list[torch.Generator] | None
GradSteps = int | Literal["all"]
OnStep = Callable[[int, Tensor, Tensor], None]


def sample(
    denoise: Callable[[Tensor, Tensor], Tensor],
    scheduler: Any,
    noise: Float[Tensor, "b c *f h w"],
    *,
    num_inference_steps: int,
    grad_steps: GradSteps = 0,
    eta: float = 0.0,
    generator: Generators = None,
    on_step: OnStep | None = None,
    start: int | None = None,
    stop: int | None = None,
) -> Float[Tensor, "b c *f h w"]:
    """Denoise `noise` (unit variance) to latents with any diffusers scheduler.

    The graph is kept through the last `grad_steps` steps ("all": through all, and to `noise`);
    the steps before run without gradient. The scheduler is copied, so a run leaves no state.
    `generator` reaches schedulers that take it.
    `on_step(index, timestep, latents)` is called after each call of the denoiser. `start` and
    `stop` run a part: the result is the latents before call `stop`, and with `start`, 0 too,
    `noise` is the latents before that call, and no noise.

    Raises ValueError for a count out of range, for noise that wants a gradient the truncation
    would cut off, for a scheduler whose `step` is not differentiable, that has no `eta` where one
    is given, or cannot make such a schedule.
    """
    check_steps(num_inference_steps, grad_steps, eta)
    scale = denoise.latent_scale if isinstance(denoise, Denoiser) else 1.0
    scheduler, schedule = prepare_scheduler(denoise, scheduler, num_inference_steps, noise.device)
    begin = start or 0
    enter_at(scheduler, begin, len(schedule))
    steps = step_of_calls(scheduler, len(schedule), num_inference_steps)
    kept = num_inference_steps if grad_steps == "all" else grad_steps
    first = sum(step < num_inference_steps - kept for step in steps)  # call with gradient
    if torch.is_grad_enabled() and noise.requires_grad and first > begin:
        raise ValueError(
            f"the noise requires a gradient, but grad_steps is {grad_steps} of "
            f"{num_inference_steps} steps and would cut it off; use grad_steps='all'"
        )
    if torch.is_grad_enabled() and kept:
        check_differentiable(denoise, scheduler, num_inference_steps)
    extra = step_arguments(scheduler, eta, generator)
    x0_only = isinstance(denoise, Denoiser) and denoise.one_step_x0 and len(schedule) == 1

    latents = noise * scale
    if start is None:
        latents = latents * getattr(scheduler, "init_noise_sigma", 1.0)  # flow matching has none
    for index, timestep in enumerate(schedule[:stop]):
        if index < begin:
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
    guidance_scale: float | None = None,
    eta: float = 0.0,
    height: int | None = None,
    width: int | None = None,
    num_frames: int | None = None,
    max_sequence_length: int | None = None,
    grad_steps: GradSteps = 0,
    checkpointing: bool = False,
    on_step: OnStep | None = None,
) -> Float[Tensor, "b *t 3 height width"]:
    """Images in [0, 1], one per prompt: those of the pipeline's own `__call__`; of a pipeline of
    videos [b, t, 3, height, width].

    None means the pipeline's default; distilled models take 1 step without guidance. Image i
    starts from `latents[i]` (any float precision), else from noise of the generator, else of its
    own CPU generator seeded with `seed + i`, else of the global one. A sampler that draws noise of
    its own draws the same one by `seed` with and without `latents`. `grad_steps=K` keeps the graph
    through the last K steps, "all" through all steps and to `latents`.

    Raises ValueError for prompts, sizes or counts that do not fit, and for pictures that are not
    finite, as damaged weights and overflows make them.
    """
    prompts = [prompts] if isinstance(prompts, str) else list(prompts)
    steps = default_steps(pipe) if num_inference_steps is None else num_inference_steps
    check_steps(steps, grad_steps, eta)
    if seed is not None and generator is not None:
        raise ValueError("seed and generator are both given; give one of them")
    if seed is not None:
        seeds = [seed + i for i in range(len(prompts))]
        if latents is None:
            generator = [torch.Generator().manual_seed(one) for one in seeds]
        else:
            generator = past_the_noise(pipe, seeds, height, width, num_frames)
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
        noise = _starting_noise(pipe, len(prompts), latents, generator, height, width, num_frames)
        final = sample(
            denoise,
            pipe.scheduler,
            noise,
            num_inference_steps=steps,
            grad_steps=grad_steps,
            eta=eta,
            generator=generator,
            on_step=on_step,
        )
        images = decode(pipe, final, checkpointing=checkpointing)
    check_finite(pipe, final.detach(), images.detach())
    return images


def make_noise(
    pipe: Any,
    seeds: Sequence[int],
    height: int | None = None,
    width: int | None = None,
    num_frames: int | None = None,
) -> Float[Tensor, "b c *f h w"]:
    """Unit-variance noise for images of this size in pixels, row i from `seeds[i]` alone."""
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    return _starting_noise(pipe, len(generators), None, generators, height, width, num_frames)


def candidate_seeds(seed: int, start: int, count: int) -> list[int]:
    """The seeds of candidates `start`, `start` + 1, … of a search; the first one's is `seed`, those
    of seed 0 and 1 differ."""
    return [seed + 1_000_003 * (start + i) for i in range(count)]


def past_the_noise(
    pipe: Any,
    seeds: Sequence[int],
    height: int | None = None,
    width: int | None = None,
    num_frames: int | None = None,
) -> list[torch.Generator]:
    """Generators of these seeds that have drawn the starting noise: what a sampler draws next is
    independent of it, and the same as in a run that starts from the seed."""
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    _starting_noise(pipe, len(generators), None, generators, height, width, num_frames)
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
) -> tuple[Any, Tensor]:
    """A fresh copy of the scheduler, set for this many steps, and the timesteps to visit."""
    fresh = copy_scheduler(scheduler)

    def schedule() -> Tensor:
        if isinstance(denoise, Denoiser):
            return denoise.set_timesteps(fresh, num_inference_steps, device)
        fresh.set_timesteps(num_inference_steps, device=device)
        return fresh.timesteps

    return fresh, set_timesteps(fresh, schedule, num_inference_steps)


def step_arguments(scheduler: Any, eta: float, generator: Generators) -> dict[str, Any]:
    """Those of `eta` and `generator` that this scheduler's `step` takes.

    Raises ValueError for an `eta` above 0 where it takes none.
    """
    check_eta(scheduler, eta)
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
) -> None:
    """Raise ValueError naming a scheduler whose step gives the model output no gradient.

    Found out by trying: a copy takes its first two steps on tiny tensors.
    """
    cpu = torch.device("cpu")
    probe, schedule = prepare_scheduler(denoise, scheduler, num_inference_steps, cpu)
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
        reason = brief(error)
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
    num_frames: int | None,
) -> Tensor:
    """The latents given, checked, or new noise from the generator, as the pipelines draw it."""
    family, device = family_of(pipe), denoiser_module(pipe).device
    shape, dtype = (batch, *latent_shape(pipe, height, width, num_frames)), family.noise_dtype(pipe)
    if latents is None:
        return randn_tensor(shape, generator=generator, device=device, dtype=dtype)
    if family.unpack_latents and latents.ndim == 3 and latents.numel() == math.prod(shape):
        latents = family.unpack_latents(pipe, latents, *image_size(pipe, height, width))
    if latents.shape != shape:
        raise ValueError(f"latents have shape {tuple(latents.shape)}; this run needs {shape}")
    if not latents.is_floating_point():
        raise TypeError(f"latents are {latents.dtype}; they must be floating point")
    return latents.to(device, dtype)
