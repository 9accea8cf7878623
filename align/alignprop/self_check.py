"""`align train --self-check`: what can be trusted on the user's own model, found out by trying."""

import dataclasses
import inspect
import sys
import tempfile
from dataclasses import dataclass
from typing import Any

import psutil
import torch
from torch import Tensor

from align.alignprop.memory import plan
from align.alignprop.session import open_session, trained_reward
from align.alignprop.update import figures, losses
from align.config.train import METHODS, TrainConfig
from align.diffusion.denoisers import denoiser_module, family_of, refuse_videos
from align.diffusion.pixels import decode
from align.diffusion.sample import generate, make_noise, sample, step_arguments
from align.diffusion.schedules import check_schedule
from align.models.lora import remove_lora
from align.models.processes import end_training
from align.training.loop import fit
from align.training.pictures import score_pictures
from align.training.runs import Run
from align.training.stopping import clear_memory_errors

PARITY = 1e-4  # of pixels in [0, 1]; half precision is allowed more
PARITY_HALF = 3e-2
GRADIENT = 0.05  # relative error of finite differences
WIDTHS = (3.0, 1.0, 0.3, 0.1, 0.03, 0.01)  # of the reward, up and down


@dataclass(frozen=True)
class Finding:
    """One thing that was checked."""

    name: str
    passed: bool
    text: str


def self_check(config: TrainConfig, *, reward: Any = None, pipe: Any = None) -> list[Finding]:
    """Check a model with these settings in a few steps; nothing is trained or kept.

    Parity: our images against the pipeline's own. Gradient: that of the last step against finite
    differences. Memory: the peak of one whole update, and its time, with the settings that
    `config.memory` leads to. Raises what `train` raises. A `pipe` is given back as it was.
    """
    if config.memory and pipe is None:
        config, _ = plan(config, trained_reward(config, reward=reward))
    with tempfile.TemporaryDirectory() as folder, clear_memory_errors():
        config = dataclasses.replace(config, out=folder, tracker="none", resume=None)
        scheduler = pipe.scheduler if pipe is not None else None
        run = open_session(config, reward=reward, pipe=pipe)
        encoders = {n: part for n, part in run.pipe.components.items() if "encoder" in n}
        try:
            refuse_videos(run.pipe, "self_check")
            findings = [_parity(run)]
            if config.cache_embeddings:
                run.sampler.embed.keep(run.prompts.prompts)
            if run.scale is not None:
                run.scale.update(score_pictures(run, None))
            if METHODS[config.method].through_sampler:
                findings.append(_gradient(run))
            return [*findings, _memory(run)]
        finally:
            for name, part in encoders.items():
                setattr(run.pipe, name, part)
            if scheduler is not None:
                run.pipe.scheduler = scheduler
            remove_lora(run.pipe)
            end_training(run.accelerator)


def findings_text(findings: list[Finding]) -> str:
    """The findings, one a line."""
    return "\n".join(f"{'ok  ' if f.passed else 'FAIL'}  {f.name}: {f.text}" for f in findings)


@torch.no_grad()
def _parity(run: Run) -> Finding:
    c, pipe = run.config, run.pipe
    prompts = run.prompts.prompts[:1]
    settings: dict[str, Any] = {
        "num_inference_steps": c.num_inference_steps,
        "height": c.height,
        "width": c.width,
    }
    extra: dict[str, Any] = {"negative_prompts": c.negative_prompt, "eta": c.eta}
    scale, family = c.guidance_scale, family_of(pipe)
    ours = generate(
        pipe, prompts, generator=_generators(run), guidance_scale=scale, **extra, **settings
    )
    # What only some families' pipelines take; ours never changes a size that was asked for.
    takes = inspect.signature(type(pipe).__call__).parameters
    negative = c.negative_prompt
    if negative is None and family.is_guided(pipe, scale):
        negative = family.own_negative
    some = {"negative_prompt": negative, "use_resolution_binning": False}
    some |= step_arguments(pipe.scheduler, c.eta, None)  # none of eta where it does not take it
    settings |= {name: value for name, value in some.items() if name in takes and value is not None}
    if "intermediate_timesteps" in takes and c.num_inference_steps != 2:
        settings["intermediate_timesteps"] = None  # SANA-Sprint's default is for two steps alone
    settings |= {"prompt": list(prompts), family.guidance_argument: scale}  # some write into it
    own = pipe(generator=_generators(run), output_type="pt", **settings).images
    gap = (ours.float() - own.float()).abs().max().item()
    bound = PARITY_HALF if _is_half(run) else PARITY
    text = f"largest difference from {type(pipe).__name__}'s own image {gap:.2g} (<= {bound:g})"
    return Finding("parity", gap <= bound, text)


def _generators(run: Run) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(run.config.seed)]


def _is_half(run: Run) -> bool:
    """Whether a part of the way to the image computes in half precision."""
    half = (torch.float16, torch.bfloat16)
    return run.pipe.vae.dtype in half or denoiser_module(run.pipe).dtype in half


def _gradient(run: Run) -> Finding:
    """The slope of the reward along its own gradient, for the last step of one image."""
    c, pipe = run.config, run.pipe
    prompts, metadata = run.prompts.prompts[:1], run.prompts.metadata[:1]
    denoise = run.sampler.denoiser(run.sampler.embed(prompts), checkpointing=c.checkpointing)
    settings: dict[str, Any] = {"num_inference_steps": c.num_inference_steps, "eta": c.eta}
    steps = check_schedule(pipe, c.num_inference_steps, c.eta, c.height, c.width)
    last = steps.index(c.num_inference_steps - 1)
    with torch.no_grad():
        noise = make_noise(pipe, [c.seed], c.height, c.width, c.num_frames)
        settings["generator"] = _generators(run)
        before = sample(denoise, pipe.scheduler, noise, stop=last, **settings)

    def loss() -> Tensor:
        settings["generator"] = _generators(run)  # the same draws whenever the step is made
        latents = sample(denoise, pipe.scheduler, before, start=last, grad_steps=1, **settings)
        return -run.reward(decode(pipe, latents), prompts, metadata).sum()

    gradients = torch.autograd.grad(loss(), run.parameters)
    norm = torch.stack([g.cpu().double().square().sum() for g in gradients]).sum().sqrt().item()
    if norm == 0:
        return Finding("gradient", False, "it is zero: the reward does not change with the image")
    errors = []
    for width in WIDTHS:  # the best one: rounding spoils small steps, curvature large
        slope = (_moved(run, loss, gradients, width / norm)
                 - _moved(run, loss, gradients, -width / norm)) / (2 * width)  # fmt: skip
        errors.append(abs(slope - norm) / norm)
    text = f"norm {norm:.3g}, {min(errors):.2%} off finite differences (<= {GRADIENT:.0%})"
    if min(errors) > GRADIENT and _is_half(run):
        text = f"norm {norm:.3g}; half precision is too coarse to check it: try --dtype float32"
        return Finding("gradient", True, text)
    return Finding("gradient", min(errors) <= GRADIENT, text)


@torch.no_grad()
def _moved(run: Run, loss: Any, gradients: Any, factor: float) -> float:
    """The loss with the weights moved along the gradient; they are put back."""
    kept = [p.detach().clone() for p in run.parameters]
    for p, g in zip(run.parameters, gradients, strict=True):
        p.add_(g.to(p.dtype), alpha=factor)
    value = loss().cpu().double().item()
    for p, old in zip(run.parameters, kept, strict=True):
        p.copy_(old)
    return value


def _peak_of_process() -> int:
    """The most memory that this process has held, in bytes."""
    if sys.platform == "win32":
        return psutil.Process().memory_info().peak_wset
    import resource

    unit = 1 if sys.platform == "darwin" else 1024  # Linux counts in KiB, macOS in bytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _memory(run: Run) -> Finding:
    c, device = run.config, run.parameters[0].device
    cuda = device.type == "cuda"
    if cuda:
        torch.cuda.reset_peak_memory_stats(device)
    record = fit(run, losses, figures, on_step=lambda record: True)
    peak = torch.cuda.max_memory_allocated(device) if cuda else _peak_of_process()
    minutes = record["seconds"] * c.steps / 60
    text = (
        f"one update of {c.batch_size} images ({record['window']}) peaks at {peak / 2**30:.2f} GiB "
        f"and takes {record['seconds']:.1f} s; {c.steps} updates about {minutes:.0f} min"
    )
    return Finding("update", record["grad_norm"] > 0, text)
