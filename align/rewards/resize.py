"""How reward models see a picture: resized, cropped or padded, normalised; all differentiable.

Images are [b, 3, h, w] in [0, 1], float32 or float64. Every filter widens when it shrinks a picture
(antialiasing), as Pillow's do: on the same tensor, values equal those of torchvision's `Resize`.
Pillow itself works on bytes, so that it rounds to 1/255 after each of its two passes and clips the
overshoot of bicubic; neither is done here, as both would cost the gradient. No image is touched by
another one of its batch.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

Filter = Literal["bicubic", "bilinear"]

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def resize(
    images: Float[Tensor, "b 3 h w"], size: tuple[int, int], mode: Filter = "bicubic"
) -> Float[Tensor, "b 3 height width"]:
    """Resize to `size` (height, width), whatever that does to the aspect ratio."""
    if tuple(images.shape[-2:]) == size:
        return images
    return F.interpolate(images, size, mode=mode, antialias=True, align_corners=False)


def shortest_side(
    images: Float[Tensor, "b 3 h w"], size: int, mode: Filter = "bicubic"
) -> Float[Tensor, "b 3 height width"]:
    """Resize so that the shorter side is `size`; the longer one is rounded down."""
    height, width = images.shape[-2:]
    if height <= width:
        return resize(images, (size, int(size * width / height)), mode)
    return resize(images, (int(size * height / width), size), mode)


def centre_crop(
    images: Float[Tensor, "b 3 h w"], size: int, *, half_to_even: bool = False
) -> Float[Tensor, "b 3 size size"]:
    """The middle `size` x `size` of images that are at least so large.

    An odd margin leaves the middle between two pixels: transformers takes the first of them,
    torchvision rounds half to even (`half_to_even`).
    """
    margins = [length - size for length in images.shape[-2:]]
    top, left = (round(m / 2) if half_to_even else m // 2 for m in margins)
    return images[..., top : top + size, left : left + size]


def crop_to(
    images: Float[Tensor, "b 3 h w"],
    size: int,
    mode: Filter = "bicubic",
    *,
    half_to_even: bool = False,
) -> Float[Tensor, "b 3 size size"]:
    """Shorter side to `size`, then the middle: CLIP's way."""
    return centre_crop(shortest_side(images, size, mode), size, half_to_even=half_to_even)


def letterbox(
    images: Float[Tensor, "b 3 h w"], size: int, mode: Filter = "bicubic"
) -> Float[Tensor, "b 3 size size"]:
    """Longer side to `size`, the rest filled with 0 (black) on both sides: HPS's way."""
    height, width = images.shape[-2:]
    scale = size / max(height, width)
    inner = (max(1, round(height * scale)), max(1, round(width * scale)))
    down, across = size - inner[0], size - inner[1]
    padding = (across // 2, across - across // 2, down // 2, down - down // 2)
    return F.pad(resize(images, inner, mode), padding)


def square_pad(
    images: Float[Tensor, "b 3 h w"], fill: tuple[float, float, float] = CLIP_MEAN
) -> Float[Tensor, "b 3 side side"]:
    """Pad the shorter side with one colour to a square, the picture in the middle: LLaVA's way.

    The colour is rounded down to bytes, as the original pastes onto a canvas of bytes.
    """
    height, width = images.shape[-2:]
    side = max(height, width)
    top, left = (side - height) // 2, (side - width) // 2
    colour = torch.tensor([int(255 * value) / 255 for value in fill]).to(images)
    canvas = colour.view(1, 3, 1, 1).expand(len(images), 3, side, side).clone()
    canvas[..., top : top + height, left : left + width] = images
    return canvas


def normalise(
    images: Float[Tensor, "b 3 h w"],
    mean: tuple[float, ...] = CLIP_MEAN,
    std: tuple[float, ...] = CLIP_STD,
) -> Float[Tensor, "b 3 h w"]:
    """(image - mean) / std, channel by channel."""
    shape = (1, 3, 1, 1)
    return (images - images.new_tensor(mean).view(shape)) / images.new_tensor(std).view(shape)


def check_size(images: Tensor, least: int, name: str) -> None:
    """Raise ValueError where a side is shorter than `least`, one patch of the tower of `name`."""
    height, width = images.shape[-2:]
    if min(height, width) < least:
        raise ValueError(
            f"images of {height}x{width} pixels are too small for {name}: its tower looks at "
            f"patches of {least}x{least}, so no side may be shorter than {least}"
        )
