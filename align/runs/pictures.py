"""The one reader of other people's pictures, as cameras, scanners and design tools write them."""

import io
import warnings
from pathlib import Path, PurePath
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
# What Pillow raises for a file that is no picture, damaged or far too large.
FAULTS = (
    OSError,
    SyntaxError,
    EOFError,
    UnidentifiedImageError,
    Image.DecompressionBombError,
)


def read_picture(source: Path | bytes, name: str | None = None) -> Image.Image:
    """A picture file as `rgb` has it. Raises ValueError naming one that cannot be read."""
    try:
        with (
            warnings.catch_warnings(),
            Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image,
        ):
            warnings.simplefilter("ignore")  # of its size, and of odd but harmless metadata
            return rgb(image)
    except (*FAULTS, ValueError) as error:
        raise ValueError(f"{name or source} cannot be read as a picture: {error}") from error


def read_image(source: Path | bytes) -> "Float[Tensor, '3 h w']":
    """A picture file as RGB in [0, 1]. Raises ValueError naming one that cannot be read."""
    import torch

    return torch.from_numpy(np.array(read_picture(source))).permute(2, 0, 1).float() / 255


def rgb(image: Image.Image) -> Image.Image:
    """A picture upright (by its EXIF orientation), in 8 bits a channel, on white where it is
    transparent, as RGB. Animations count by their first frame."""
    image = ImageOps.exif_transpose(image)
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        image = _eight_bits(image)
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


def _eight_bits(image: Image.Image) -> Image.Image:
    """A picture of 16 or 32 bits a pixel, or of floats in [0, 1], as grey values of 8 bits."""
    values = np.nan_to_num(np.asarray(image).astype(np.float64))
    peak = values.max(initial=0)
    if image.mode == "F" and peak <= 1:
        values = values * 255
    elif image.mode.startswith("I;16") or peak > 255:
        values = values / 257  # 65535 is white
    return Image.fromarray(values.round().clip(0, 255).astype(np.uint8))


def is_picture(name: str | PurePath) -> bool:
    """Whether a file, by its path within a folder, is a picture and none of a system's own files:
    macOS puts `._a.png` beside `a.png`, and `__MACOSX` into archives."""
    path = PurePath(name)
    hidden = any(part.startswith(".") and part not in (".", "..") for part in path.parts)
    return path.suffix.lower() in SUFFIXES and not hidden and "__MACOSX" not in path.parts
