"""A visitor's picture: it comes as the file's own bytes, never as a path, and is checked first."""

import base64
import binascii
import io
import struct
import warnings
from typing import Any

from PIL import Image, UnidentifiedImageError

from align.demo import values
from align.runs.pictures import rgb

FORMATS = ("PNG", "JPEG", "WEBP")
MAX_BYTES = 10_000_000
MAX_PIXELS = 20_000_000
NAMES = "PNG, JPEG or WebP"


def picture(value: Any) -> Image.Image | None:
    """The picture of a `data:` address or of base64, upright, RGB; None where there is none.

    Raises TypeError or ValueError, in one sentence, for what is too large or no such picture.
    """
    if value is None or value == "":
        return None
    if not isinstance(value, str):
        raise TypeError(f"the picture is {values.short(value)}; send a data: address")
    if len(value) > MAX_BYTES * 4 // 3 + 100:
        raise ValueError(f"the picture has more than {MAX_BYTES // 1_000_000} MB")
    head, comma, text = value.partition(",")
    try:
        content = base64.b64decode(text if comma else head, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError("the picture is not base64; send its bytes as a data: address") from error
    return _read(content)


def _read(content: bytes) -> Image.Image:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # checked below
            image = Image.open(io.BytesIO(content), formats=FORMATS)
        if image.width * image.height > MAX_PIXELS:
            raise ValueError(
                f"the picture has {image.width} x {image.height} pixels; at most "
                f"{MAX_PIXELS // 1_000_000} million are allowed"
            )
        image.load()
        return rgb(image)
    except (UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise ValueError(f"the file is no picture that can be read; send {NAMES}") from error
    except (OSError, SyntaxError, EOFError, struct.error) as error:
        raise ValueError(f"the picture is damaged; send another {NAMES}") from error
