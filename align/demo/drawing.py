"""NAR decoding for the demo, wavefront by wavefront, and the raster baseline beside it."""

import functools
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor

from align.commands.nar import load_nar_pipeline
from align.config.nar import NarGenerateConfig
from align.demo.pictures import PREVIEW_SHARE, SLOT, written
from align.demo.streaming import stream
from align.nar import NARTransformer2DModel, NARTransformer3DModel
from align.nar.generate import Wavefront, decode
from align.nar.pipeline import NARPipeline
from align.nar.scheduler import draw_uniforms
from align.nar.video_pipeline import NARVideoPipeline

PREVIEW_EVERY = 0.1  # seconds
SETTINGS = ("guidance_scale", "temperature", "top_k", "top_p")
Report = Callable[["Drawn | None"], None]


@dataclass(frozen=True)
class Drawn:
    """What a decoding has given so far."""

    total: int
    """Passes of the model that it takes."""
    done: int = 0
    seconds: float = 0.0
    """Spent on the passes; previews apart."""
    images: Float[Tensor, "b ..."] | None = None
    """The newest preview, in the end the result: pictures [b, 3, h, w], clips [b, t, 3, h, w]."""
    ended: bool = False
    baseline: tuple[int, float] | None = None
    """Passes and seconds of raster order, once measured."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Of the sampling: what was given, else the model's own."""


@dataclass(frozen=True)
class Corner:
    """A picture whose upper left corner is to be kept."""

    picture: Image.Image
    share: float
    """Of each side, from 0 to 1."""


def wavefront_steps(
    config: NarGenerateConfig, corner: Corner | None, compare: bool
) -> Generator[Drawn | None, None, None]:
    """Pictures of one prompt, wavefront by wavefront; then, with `compare`, the baseline's time.

    Closing the iterator stops the work within one pass. Raises what the pipeline raises.
    """
    return stream(functools.partial(_draw, config, corner, compare))


def _draw(config: NarGenerateConfig, corner: Corner | None, compare: bool, report: Report) -> None:
    with SLOT, torch.no_grad():
        report(None)
        pipe = nar_pipeline(config.model, config.lora)
        if corner is not None and isinstance(pipe, NARVideoPipeline):
            raise ValueError(f"{config.model} draws clips; a picture is continued by one for them")
        order = pipe.transformer.order
        report(Drawn(order.num_passes))
        own = pipe.scheduler.config
        given = {name: getattr(config, name) for name in SETTINGS}
        said = {name: own[name] if value is None else value for name, value in given.items()}
        seeds = [config.seed + i for i in range(config.num_images)]
        fronts = pipe.wavefronts(
            list(config.prompt),
            num_images_per_prompt=config.num_images,
            generator=[torch.Generator().manual_seed(seed) for seed in seeds],
            given_ids=None if corner is None else corner_ids(pipe, corner),
            **given,
        )
        drawn = _previewed(pipe, fronts, Drawn(order.num_passes, settings=said), report)
        report(drawn)
        if compare:
            passes, seconds = raster_time(pipe, config, said, report)
            report(replace(drawn, baseline=(passes, seconds)))


def _previewed(
    pipe: NARPipeline, fronts: Iterator[Wavefront], drawn: Drawn, report: Report
) -> Drawn:
    """Decode, with a preview every now and then; returns the end."""
    spent, shown, previews, ids, image = 0.0, 0.0, 0.0, None, None
    while True:
        started = time.monotonic()
        front = next(fronts, None)
        spent += time.monotonic() - started
        if front is None:
            break
        ids, now = front.ids, time.monotonic()
        if front.index == 0 or (
            now - shown >= PREVIEW_EVERY and previews <= PREVIEW_SHARE * (spent + previews)
        ):
            image = pipe.preview(ids)
            shown = time.monotonic()
            previews += shown - now
        report(Drawn(drawn.total, front.index + 1, spent, image, settings=drawn.settings))
    if ids is None:
        raise RuntimeError("the decoding ended without tokens")
    images = pipe.preview(ids)
    return Drawn(drawn.total, drawn.total, spent, images, ended=True, settings=drawn.settings)


def nar_pipeline(model: str, lora: tuple[str, ...] = ()) -> NARPipeline:
    """A NAR pipeline with its LoRAs; the last ones are kept, a LoRA that changed is read anew."""
    return _load(model, lora, tuple(written(name) for name in lora))


@functools.lru_cache(maxsize=2)
def _load(model: str, lora: tuple[str, ...], changed: tuple[float, ...]) -> NARPipeline:
    return load_nar_pipeline(model, lora=lora)


def corner_ids(pipe: NARPipeline, corner: Corner) -> Int[Tensor, "1 n"]:
    """Tokens of the picture's upper left corner, -1 elsewhere: decoding starts from there."""
    from diffusers.image_processor import VaeImageProcessor

    height, width = pipe.image_tokenizer.config.image_size
    picture = corner.picture.convert("RGB").resize((width, height), Image.Resampling.LANCZOS)
    images = VaeImageProcessor.pil_to_numpy([picture])
    ids = pipe.image_tokenizer.encode(VaeImageProcessor.numpy_to_pt(images))
    rows, columns = pipe.transformer.grid_shape
    grid = ids.view(rows, columns).clone()
    grid[round(rows * corner.share) :] = -1
    grid[:, round(columns * corner.share) :] = -1
    return grid.view(1, -1)


@functools.lru_cache(maxsize=2)
def raster_model(model: str) -> NARTransformer2DModel | NARTransformer3DModel:
    """A model of the same size that decodes token by token, row by row.

    It is not trained: only its time is of interest, and that does not depend on the weights.
    """
    own = nar_pipeline(model).transformer
    raster: Any = type(own).from_config(own.config, decoding="raster")
    raster = raster.to(own.device).eval()
    return raster if raster.dtype == own.dtype else raster.to(own.dtype)


def raster_time(
    pipe: NARPipeline, config: NarGenerateConfig, said: dict[str, Any], report: Report
) -> tuple[int, float]:
    """Passes and seconds of the same pictures in raster order, on this machine now."""
    from align.nar import NARScheduler

    model = raster_model(config.model)
    condition, mask = pipe.conditions(list(config.prompt), None, config.num_images)
    uniforms = draw_uniforms(
        config.num_images, model.order.num_tokens, torch.Generator().manual_seed(0), model.device
    )
    started = time.monotonic()
    for _ in decode(model, condition, NARScheduler(**said), condition_mask=mask, uniforms=uniforms):
        report(None)
    return model.order.num_passes, time.monotonic() - started
