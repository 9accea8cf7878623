"""`rollout`: noise to latents through a gradient window, by the one denoising loop."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from align.alignprop.windows import Draw
from align.config.windows import Window
from align.diffusion.denoisers import Denoiser
from align.diffusion.prediction import clean_of, predict_x0
from align.diffusion.sample import Generators, prepare_scheduler, sample
from align.diffusion.schedules import copy_scheduler, step_of_calls

# (output, latents, timestep, which of its images carry gradient)
Observe = Callable[[Tensor, Tensor, Tensor, Sequence[bool]], None]


def rollout(
    denoise: Denoiser,
    scheduler: Any,
    noise: Float[Tensor, "b c *f h w"],
    draw: Draw,
    *,
    eta: float = 0.0,
    generator: Generators = None,
    fresh_noise: Callable[[int], Tensor] | None = None,
    observe: Observe | None = None,
    max_step_norm: float = 0.0,
) -> Float[Tensor, "n c *f h w"]:
    """Latents whose graph reaches the parameters through the kept steps of `draw` alone.

    The steps before the window run without a graph. With DRaFT-LV (2309.17400) the
    result holds `draw.fresh` noisings of every image, one after the other, denoised by the last
    step; `fresh_noise(n)` gives the n-th. With ReFL (2304.05977, algorithm 1) it is the prediction
    of x_0 at the drawn step. `observe` sees every prediction that carries gradient. What a step of
    an image adds to the weights' gradient is scaled down as if its gradient by the prediction had
    at most the L2 norm `max_step_norm` (0: not), since a few chaotic paths through all steps else
    rule the update; the gradient that goes on to the steps before is not changed.

    Raises ValueError for a scheduler that cannot be differentiated or noised anew.
    """
    steps = len(draw.kept)
    run: dict[str, Any] = {"num_inference_steps": steps, "eta": eta, "generator": generator}
    fresh, schedule = prepare_scheduler(denoise, scheduler, steps, noise.device)
    calls = step_of_calls(fresh, len(schedule), steps)
    kept = [draw.kept[step] for step in calls]
    if draw.fresh:
        assert fresh_noise is not None  # whoever draws DRaFT-LV gives its noises
        with torch.no_grad():
            clean = sample(denoise, scheduler, noise, **run)
        last = calls.index(steps - 1)
        inner = _windowed(denoise, draw, kept[last:], observe, max_step_norm)
        return torch.cat(
            [
                sample(
                    inner(),
                    scheduler,
                    _noised(denoise, scheduler, clean, fresh_noise(n), steps, last),
                    start=last,
                    grad_steps=1,
                    **run,
                )
                for n in range(draw.fresh)
            ]
        )
    if draw.x0_at is not None:
        at = calls.index(draw.x0_at)
        with torch.no_grad():
            before = sample(denoise, scheduler, noise, stop=at, **run)
        inner = _windowed(denoise, draw, kept[at:], observe, max_step_norm)()
        return predict_x0(inner, scheduler, before, steps, at, eta, generator)
    inner = _windowed(denoise, draw, kept, observe, max_step_norm)()
    return sample(inner, scheduler, noise, grad_steps=steps - draw.first, **run)


def check_window(window: Window, scheduler: Any) -> None:
    """Raise ValueError where a window asks of a scheduler what it cannot do."""
    name = type(scheduler).__name__
    noises = hasattr(scheduler, "scale_noise") or hasattr(scheduler, "add_noise")
    if window.kind == "draft-lv" and not noises:
        raise ValueError(
            f"{name} cannot put new noise on an image, which grad_window 'draft-lv' needs; "
            "use another window, such as 1"
        )
    if window.kind != "refl":
        return
    probe, result, latents = copy_scheduler(scheduler), None, torch.zeros(1, 1, 2, 2)
    with suppress(TypeError, ValueError):  # what else it lacks is said elsewhere
        probe.set_timesteps(4)
        if hasattr(probe, "scale_model_input"):
            probe.scale_model_input(latents, probe.timesteps[0])
        result = probe.step(latents, probe.timesteps[0], latents)
    if result is not None:
        clean_of(probe, result, latents, latents, 0)


def _windowed(
    denoise: Denoiser,
    draw: Draw,
    kept_calls: Sequence[Sequence[bool]],
    observe: Observe | None,
    max_step_norm: float,
) -> Callable[[], Denoiser]:
    """Makes denoisers for one pass of the loop, which cut the gradient outside the window;
    `kept_calls[call][image]` says whether a call of the pass carries it."""

    def make() -> Denoiser:
        calls = iter(kept_calls)

        def predict(latents: Tensor, timestep: Tensor) -> Tensor:
            kept = next(calls)
            if not any(kept) or not torch.is_grad_enabled():
                with torch.no_grad():
                    return denoise(latents, timestep)
            inputs = latents.detach() if draw.detach_input else latents.view_as(latents)
            output = denoise(inputs, timestep)
            if not all(kept):
                mask = torch.tensor(kept, device=output.device).view(-1, *[1] * (output.ndim - 1))
                output = torch.where(mask, output, output.detach())
            if max_step_norm:
                _clip_between(inputs, output, max_step_norm)
            if observe is not None:
                observe(output, latents.detach(), timestep, kept)
            return output

        return replace(denoise, predict=predict)

    return make


def _clip_between(inputs: Tensor, output: Tensor, max_norm: float) -> None:
    """Scale an image's gradient down to `max_norm` at `output`, and back up at `inputs`.

    Backward passes are linear and images independent, so only what lies between, the weights,
    notices.
    """
    factors: list[Tensor] = []

    def down(gradient: Tensor) -> Tensor:
        norms = gradient.flatten(1).norm(dim=1).view(-1, *[1] * (gradient.ndim - 1))
        factors.append((max_norm / norms.clamp(min=1e-30)).clamp(max=1.0))
        return gradient * factors[-1]

    if output.requires_grad:
        output.register_hook(down)
    if inputs.requires_grad:
        inputs.register_hook(lambda gradient: gradient / factors[-1])


def _noised(
    denoise: Denoiser, scheduler: Any, clean: Tensor, noise: Tensor, steps: int, index: int
) -> Tensor:
    """Clean latents as they would be before step `index`, with this noise."""
    fresh, schedule = prepare_scheduler(denoise, scheduler, steps, clean.device)
    timesteps = schedule[index].repeat(len(clean))
    add = fresh.scale_noise if hasattr(fresh, "scale_noise") else fresh.add_noise
    arguments = (timesteps, noise) if hasattr(fresh, "scale_noise") else (noise, timesteps)
    scale = denoise.latent_scale
    return add(clean * scale, *arguments) / scale
