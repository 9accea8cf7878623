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
from align.alignprop.preferences import loss_of
from align.alignprop.session import Session, open_session, trained_reward
from align.alignprop.update import train_step
from align.config.train import METHODS, TrainConfig
from align.diffusion.denoisers import denoiser_module
from align.diffusion.pixels import decode
from align.diffusion.sample import generate, make_noise, sample, step_arguments
from align.diffusion.schedules import check_schedule
from align.models.lora import remove_lora
from align.models.processes import end_training
from align.training.pictures import score_pictures
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
        session = open_session(config, reward=reward, pipe=pipe)
        encoders = {n: part for n, part in session.pipe.components.items() if "encoder" in n}
        try:
            findings = [_parity(session)]
            if config.cache_embeddings:
                session.embed.keep(session.prompts.prompts)
            if session.scale is not None:
                session.scale.update(score_pictures(session, None))
            if METHODS[config.method].through_sampler:
                findings.append(_gradient(session))
            return [*findings, _memory(session)]
        finally:
            for name, part in encoders.items():
                setattr(session.pipe, name, part)
            if scheduler is not None:
                session.pipe.scheduler = scheduler
            remove_lora(session.pipe)
            end_training(session.accelerator)


def findings_text(findings: list[Finding]) -> str:
    """The findings, one a line."""
    return "\n".join(f"{'ok  ' if f.passed else 'FAIL'}  {f.name}: {f.text}" for f in findings)


@torch.no_grad()
def _parity(session: Session) -> Finding:
    c, pipe = session.config, session.pipe
    prompts = session.prompts.prompts[:1]
    run: dict[str, Any] = {
        "num_inference_steps": c.num_inference_steps,
        "guidance_scale": c.guidance_scale,
        "height": c.height,
        "width": c.width,
    }
    extra: dict[str, Any] = {"negative_prompts": c.negative_prompt, "eta": c.eta}
    ours = generate(pipe, prompts, generator=_generators(session), **extra, **run)
    # What only some families' pipelines take; ours never changes a size that was asked for.
    takes = inspect.signature(type(pipe).__call__).parameters
    some = {"negative_prompt": c.negative_prompt, "use_resolution_binning": False}
    some |= step_arguments(pipe.scheduler, c.eta, None)  # none of eta where it does not take it
    run |= {name: value for name, value in some.items() if name in takes and value is not None}
    if "intermediate_timesteps" in takes and c.num_inference_steps != 2:
        run["intermediate_timesteps"] = None  # SANA-Sprint's default is for two steps alone
    own = pipe(prompts, generator=_generators(session), output_type="pt", **run).images
    gap = (ours.float() - own.float()).abs().max().item()
    bound = PARITY_HALF if _is_half(session) else PARITY
    text = f"largest difference from {type(pipe).__name__}'s own image {gap:.2g} (<= {bound:g})"
    return Finding("parity", gap <= bound, text)


def _generators(session: Session) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(session.config.seed)]


def _is_half(session: Session) -> bool:
    """Whether a part of the way to the image computes in half precision."""
    half = (torch.float16, torch.bfloat16)
    return session.pipe.vae.dtype in half or denoiser_module(session.pipe).dtype in half


def _gradient(session: Session) -> Finding:
    """The slope of the reward along its own gradient, for the last step of one image."""
    c, pipe = session.config, session.pipe
    prompts, metadata = session.prompts.prompts[:1], session.prompts.metadata[:1]
    denoise = session.denoiser(session.embed(prompts), checkpointing=c.checkpointing)
    run: dict[str, Any] = {"num_inference_steps": c.num_inference_steps, "eta": c.eta}
    steps = check_schedule(pipe, c.num_inference_steps, c.eta, c.height, c.width)
    last = steps.index(c.num_inference_steps - 1)
    with torch.no_grad():
        noise = make_noise(pipe, [c.seed], c.height, c.width)
        run["generator"] = _generators(session)
        before = sample(denoise, pipe.scheduler, noise, stop=last, **run)

    def loss() -> Tensor:
        run["generator"] = _generators(session)  # the same draws whenever the step is made
        latents = sample(denoise, pipe.scheduler, before, start=last, grad_steps=1, **run)
        return -session.reward(decode(pipe, latents), prompts, metadata).sum()

    gradients = torch.autograd.grad(loss(), session.parameters)
    norm = torch.stack([g.cpu().double().square().sum() for g in gradients]).sum().sqrt().item()
    if norm == 0:
        return Finding("gradient", False, "it is zero: the reward does not change with the image")
    errors = []
    for width in WIDTHS:  # the best one: rounding spoils small steps, curvature large
        slope = (_moved(session, loss, gradients, width / norm)
                 - _moved(session, loss, gradients, -width / norm)) / (2 * width)  # fmt: skip
        errors.append(abs(slope - norm) / norm)
    text = f"norm {norm:.3g}, {min(errors):.2%} off finite differences (<= {GRADIENT:.0%})"
    if min(errors) > GRADIENT and _is_half(session):
        text = f"norm {norm:.3g}; half precision is too coarse to check it: try --dtype float32"
        return Finding("gradient", True, text)
    return Finding("gradient", min(errors) <= GRADIENT, text)


@torch.no_grad()
def _moved(session: Session, loss: Any, gradients: Any, factor: float) -> float:
    """The loss with the weights moved along the gradient; they are put back."""
    kept = [p.detach().clone() for p in session.parameters]
    for p, g in zip(session.parameters, gradients, strict=True):
        p.add_(g.to(p.dtype), alpha=factor)
    value = loss().cpu().double().item()
    for p, old in zip(session.parameters, kept, strict=True):
        p.copy_(old)
    return value


def _peak_of_process() -> int:
    """The most memory that this process has held, in bytes."""
    if sys.platform == "win32":
        return psutil.Process().memory_info().peak_wset
    import resource

    unit = 1 if sys.platform == "darwin" else 1024  # Linux counts in KiB, macOS in bytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _memory(session: Session) -> Finding:
    c, cuda = session.config, session.device.type == "cuda"
    if cuda:
        torch.cuda.reset_peak_memory_stats(session.device)
    record = train_step(session, 0, loss_of=loss_of(c))
    peak = torch.cuda.max_memory_allocated(session.device) if cuda else _peak_of_process()
    minutes = record["seconds"] * c.steps / 60
    text = (
        f"one update of {c.batch_size} images ({record['window']}) peaks at {peak / 2**30:.2f} GiB "
        f"and takes {record['seconds']:.1f} s; {c.steps} updates about {minutes:.0f} min"
    )
    return Finding("update", record["grad_norm"] > 0, text)
