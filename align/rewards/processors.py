"""The view of a picture that a processor of transformers describes, with a gradient.

Processors turn pictures into bytes on their way. Where one only resizes, crops and normalises, its
settings say all that is needed to do the same with tensors; whether that is so is tried out.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from align.rewards.resize import Filter, centre_crop, check_size, normalise, resize, shortest_side

FILTERS: dict[int, Filter] = {2: "bilinear", 3: "bicubic"}  # Pillow's numbers
ROUNDING = 2.5 / 255  # of two passes over bytes, and clipped overshoot


@dataclass(frozen=True)
class PlainView:
    """Resize (`shortest` or to `size`), crop and normalise.

    Attributes:
        blank: a picture of Pillow's, for the processor to count tokens by.
    """

    size: tuple[int, int] | None
    shortest: int | None
    crop: int | None
    mode: Filter
    mean: tuple[float, ...]
    std: tuple[float, ...]
    blank: Image.Image

    def __call__(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 height width"]:
        check_size(images, 8, "this model")
        if self.shortest is not None:
            images = shortest_side(images, self.shortest, self.mode)
        elif self.size is not None:
            images = resize(images, self.size, self.mode)
        if self.crop is not None:
            images = centre_crop(images, self.crop)
        return normalise(images, self.mean, self.std)


def read_view(processor: Any, name: str) -> PlainView:
    """The view of an image processor.

    Raises ValueError where it does more than this, as tiles, padding or patches.
    """
    size = dict(getattr(processor, "size", None) or {})
    crop = dict(getattr(processor, "crop_size", None) or {})
    fixed = (size["height"], size["width"]) if {"height", "width"} <= set(size) else None
    view = PlainView(
        size=fixed if processor.do_resize else None,
        shortest=size.get("shortest_edge") if processor.do_resize and fixed is None else None,
        crop=crop.get("height") if getattr(processor, "do_center_crop", False) else None,
        mode=FILTERS.get(int(processor.resample), "bicubic"),
        mean=tuple(processor.image_mean) if processor.do_normalize else (0.0, 0.0, 0.0),
        std=tuple(processor.image_std) if processor.do_normalize else (1.0, 1.0, 1.0),
        blank=Image.new("RGB", (64, 64)),
    )
    for height, width in ((96, 96), (80, 120)):
        if not _agrees(view, processor, height, width):
            raise ValueError(
                f"the processor of {name}, {type(processor).__name__}, does more than resize, "
                "crop and normalise a picture, so its scores would have no exact gradient; models "
                "such as LLaVA 1.5, PaliGemma and BLIP-2 are supported"
            )
    return view


def _agrees(view: PlainView, processor: Any, height: int, width: int) -> bool:
    """Whether the processor's own pixels of a smooth picture are those of the view."""
    y, x = np.mgrid[0:height, 0:width] / 40
    array = np.stack([np.sin(x + y), np.cos(x - y), np.sin(2 * x)], -1) * 100 + 128
    array = array.astype(np.uint8)
    theirs = processor(Image.fromarray(array), return_tensors="pt")["pixel_values"]
    if not isinstance(theirs, Tensor) or theirs.ndim != 4 or len(theirs) != 1:
        return False
    ours = view(torch.from_numpy(array / 255).permute(2, 0, 1)[None])
    if ours.shape != theirs.shape:
        return False
    return bool((ours - theirs).abs().max() <= ROUNDING / min(view.std))
