"""Generating for the demo: the command line's own functions, step by step, one job at a time."""

import functools
import threading
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from align.commands.generate import generate_batch, picture_settings
from align.config.commands import GenerateConfig
from align.demo.safety import screened, ships
from align.demo.streaming import stream
from align.diffusion.denoisers import image_size, refuse_videos
from align.diffusion.pixels import decode
from align.diffusion.prompt_limits import prompt_warnings
from align.models.load import best_device, load_pipeline
from align.models.lora_files import parse_lora
from align.rewards import load_reward
from align.rewards.facts import Fact, explain
from align.rewards.groups import pointwise
from align.runs.clips import save_clip
from align.runs.folder import grid_images, save_image
from align.runs.page import objects_text

SLOT = threading.Lock()  # a stopped job may still be finishing its step when the next one starts
PREVIEW_EVERY = 0.4  # seconds
PREVIEW_SHARE = 0.25  # of the time at most goes into previews
SIZE_FACTOR = 2  # sides up to this many times the model's own
KEPT_PIPELINES = 3
KEPT_REWARDS = 4
EXPLAINER = "scenes-detector"


@dataclass(frozen=True)
class Update:
    """What a job says while it runs."""

    total: int
    done: int = 0
    """Denoising steps."""
    seconds: float = 0.0
    """Since the first step began."""
    images: Float[Tensor, "b 3 h w"] | None = None
    """The newest preview, in the end the result, in [0, 1]."""
    warnings: list[str] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)
    """What the PNG files say of how they were made; with the result only."""


@dataclass(frozen=True)
class Verdict:
    """What the verifier says of a picture of the embedded world."""

    exact: bool
    partial: float
    """Share of the stated facts that hold."""
    sees: str
    facts: tuple[Fact, ...] = ()
    """What `EXPLAINER` says of each stated fact; empty where it has no say."""


def generate_steps(config: GenerateConfig) -> Generator[Update | None, None, None]:
    """Images of one prompt, update by update; the last update has `settings`.

    None is yielded where a step takes long. Closing the iterator stops the job within one step.
    Raises what `align generate` raises, and ValueError for sizes too large.
    """
    return stream(functools.partial(_generate, config))


def _generate(config: GenerateConfig, report: Callable[[Update | None], None]) -> None:
    with SLOT, torch.no_grad():
        steps = config.num_inference_steps or 1
        report(Update(steps))
        pipe = pipeline(config.model, config.lora)
        check_size(pipe, config.height, config.width)
        texts = [t for t in (*config.prompt, config.negative_prompt) if t]
        warnings = prompt_warnings(pipe, texts)
        checked = ships(config.model)  # previews would show what the checker is to hide
        started = time.monotonic()
        preview, spent, shown = None, 0.0, started

        def on_step(index: int, timestep: Tensor, latents: Tensor) -> None:
            nonlocal preview, spent, shown
            now = time.monotonic()
            due = not checked and now - shown >= PREVIEW_EVERY
            if due and spent <= PREVIEW_SHARE * (now - started) and index + 1 < steps:
                preview = decode(pipe, latents)
                shown = time.monotonic()
                spent += shown - now
            report(Update(steps, index + 1, time.monotonic() - started, preview, warnings))

        prompts = [config.prompt[0]] * config.num_images
        images = generate_batch(config, pipe, prompts, range(config.num_images), on_step=on_step)
        seconds = time.monotonic() - started
        images, hidden = screened(config.model, images)
        warnings = [*warnings, *hidden]
        report(Update(steps, steps, seconds, images, warnings, picture_settings(config, pipe)))


def pipeline(model: str, lora: tuple[str, ...]) -> Any:
    """The pipeline of a model and its LoRAs; the last few are kept, a LoRA that changed is read
    anew."""
    return _load(model, lora, tuple(written(name) for name in lora))


@functools.lru_cache(maxsize=KEPT_PIPELINES)
def _load(model: str, lora: tuple[str, ...], changed: tuple[float, ...]) -> Any:
    pipe = load_pipeline(model, lora=lora or None)
    refuse_videos(pipe, "the demo")
    return pipe


@functools.lru_cache(maxsize=KEPT_REWARDS)
def reward_of(expression: str) -> Any:
    """The reward of an expression; the last few are kept."""
    return pointwise(load_reward(expression, best_device()), "this page")


def written(lora: str) -> float:
    """When a LoRA on this disk was last written; 0 for one on the Hub."""
    folder = Path(parse_lora(lora)[0]).expanduser()
    files = [folder] if folder.is_file() else folder.rglob("*.safetensors")
    return max((file.stat().st_mtime for file in files), default=0.0)


def check_size(pipe: Any, height: int | None, width: int | None) -> None:
    """Raise ValueError for a size that the model cannot do or that would take too much."""
    own = image_size(pipe, None, None)
    for name, side, most in (("height", height, own[0]), ("width", width, own[1])):
        if side is not None and side > SIZE_FACTOR * most:
            raise ValueError(
                f"{name} is {side}; this model's own is {most}, at most {SIZE_FACTOR * most} here"
            )
    image_size(pipe, height, width)


def save_pictures(
    images: Float[Tensor, "b ..."], config: Any, settings: dict[str, Any], folder: Path
) -> list[Path]:
    """Write each image `[3, h, w]` as a PNG, each clip `[t, 3, h, w]` as a GIF, that say how they
    were made; returns the files."""
    paths = []
    for index, image in enumerate(images):
        seed = config.seed + index
        save, ending = (save_image, "png") if image.ndim == 3 else (save_clip, "gif")
        path = folder / f"{slug(config.prompt[0])}-seed-{seed}.{ending}"
        save(path, image, prompt=config.prompt[0], seed=seed, **settings)
        paths.append(path)
    return paths


def slug(prompt: str) -> str:
    """A prompt as part of a file's name."""
    words = "-".join("".join(c if c.isalnum() else " " for c in prompt).split())
    return words[:60].encode()[:120].decode(errors="ignore") or "picture"


def judge(model: str, prompt: str, images: Float[Tensor, "b 3 h w"]) -> list[Verdict]:
    """What the verifier sees in pictures by an embedded model; empty where it has no say:
    for other models and sizes, and prompts outside its grammar."""
    from align.scenes import read, verify

    if not of_scenes(model, prompt, images):
        return []
    exact, partial = verify([prompt] * len(images), images)
    pixels = images.detach().float().cpu().numpy()
    facts = facts_of(model, prompt, images) or [()] * len(images)
    return [
        Verdict(bool(e), float(p), objects_text(read(image)), f)
        for e, p, image, f in zip(exact, partial, pixels, facts, strict=True)
    ]


def of_scenes(model: str, prompt: str, images: Float[Tensor, "b 3 h w"]) -> bool:
    """Whether pictures and prompt are of the embedded world, so that they can be compared."""
    from align.scenes import parse

    try:
        parse(prompt)
    except ValueError:
        return False
    return model.startswith("embedded/") and images.shape[-2:] == (64, 64)


def facts_of(model: str, prompt: str, images: Float[Tensor, "b 3 h w"]) -> list[tuple[Fact, ...]]:
    """The facts of pictures of one prompt by `EXPLAINER`; empty where it has no say, as `judge`,
    or is not installed."""
    if not of_scenes(model, prompt, images):
        return []
    try:
        reward = reward_of(EXPLAINER)
    except FileNotFoundError:
        return []
    return [tuple(row) for row in explain(reward, images, [prompt] * len(images))[EXPLAINER]]


def judge_clips(model: str, prompt: str, clips: Float[Tensor, "b t 3 h w"]) -> list[Verdict]:
    """What the verifier sees in clips by an embedded model; empty where it has no say."""
    from align.scenes.motion import parse_motion
    from align.scenes.motion_verifier import verify_clips

    if not model.startswith("embedded/"):
        return []
    try:
        parse_motion(prompt)
    except ValueError:
        return []
    return [
        Verdict(v.exact, v.frames, f"the object right in {v.frames:.0%} of the frames, "
                f"direction {'right' if v.direction else 'wrong'}")
        for v in verify_clips([prompt] * len(clips), clips)
    ]  # fmt: skip


@functools.lru_cache(maxsize=8)
def measured(grid: Path, changed: int) -> tuple[list[str], list[str], str]:
    """The prompts of a grid of pictures, what is seen in each, and the means in words; `changed`
    is when the file was."""
    from align.scenes import measure_taste, read, verify

    with Image.open(grid) as opened:
        prompts = opened.info["prompt"].split("\n")
        pixels = torch.from_numpy(np.array(opened.convert("RGB"))).permute(2, 0, 1) / 255
    images = grid_images(pixels, len(prompts))
    try:
        marks = ["✓ " if exact else "✗ " for exact in verify(prompts, images)[0]]
    except ValueError:  # prompts of a visitor's own that are outside the grammar
        marks = [""] * len(prompts)
    texts = [m + objects_text(read(image.numpy())) for m, image in zip(marks, images, strict=True)]
    taste = measure_taste(images)
    means = f"radius {taste.radius.mean():.1f} px, taste {taste.value.mean():.2f}"
    if any(marks):
        means = f"{sum(m == '✓ ' for m in marks)} of {len(marks)} as asked, {means}"
    return prompts, texts, means
