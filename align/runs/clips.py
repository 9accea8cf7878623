"""Clips as files: GIF by Pillow, MP4 where PyAV or imageio-ffmpeg is installed."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from align.runs.files import atomic_path, finite

FORMATS = ("gif", "mp4")


def check_format(name: str) -> None:
    """ValueError for an unknown format, or where nothing that writes MP4 is installed."""
    if name not in FORMATS:
        raise ValueError(f"clips are written as {' or '.join(FORMATS)}, not {name!r}")
    if name == "mp4" and not _installed("av") and not _installed("imageio_ffmpeg"):
        raise ValueError("mp4 needs PyAV: pip install av (or imageio-ffmpeg); gif works without it")


def save_clip(
    path: str | Path, frames: Float[Tensor, "t 3 h w"], *, fps: float = 8.0, **facts: Any
) -> None:
    """Write frames in [0, 1] as `path` says by its ending; a GIF's comment holds `facts`.

    A GIF loops for ever and has at most 256 colours a frame. MP4 takes even sides only: an odd
    one is repeated by a pixel.
    """
    kind = Path(path).suffix.removeprefix(".")
    check_format(kind)
    pixels = (frames.detach().float().clamp(0, 1) * 255).round().byte()
    array = pixels.permute(0, 2, 3, 1).contiguous().cpu().numpy()
    with atomic_path(path) as temporary:
        if kind == "gif":
            _write_gif(temporary, array, fps, facts)
        elif _installed("av"):
            _write_with_av(temporary, _even(array), fps)
        else:
            _write_with_ffmpeg(temporary, _even(array), fps)


def _write_gif(path: Path, array: UInt8[np.ndarray, "t h w 3"], fps: float, facts: dict) -> None:
    images = [Image.fromarray(frame).quantize(256, dither=Image.Dither.NONE) for frame in array]
    comment = json.dumps(finite(facts)).encode()
    images[0].save(
        path, format="GIF", save_all=True, append_images=images[1:], duration=round(1000 / fps),
        loop=0, comment=comment,
    )  # fmt: skip


def _write_with_av(path: Path, array: UInt8[np.ndarray, "t h w 3"], fps: float) -> None:
    import av  # pyright: ignore[reportMissingImports]

    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("h264", rate=round(fps))
        stream.height, stream.width, stream.pix_fmt = array.shape[1], array.shape[2], "yuv420p"
        for frame in array:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


def _write_with_ffmpeg(path: Path, array: UInt8[np.ndarray, "t h w 3"], fps: float) -> None:
    import imageio_ffmpeg  # pyright: ignore[reportMissingImports]

    size = (array.shape[2], array.shape[1])
    writer = imageio_ffmpeg.write_frames(
        str(path), size, fps=fps, macro_block_size=2, output_params=["-f", "mp4"]
    )
    writer.send(None)
    for frame in array:
        writer.send(np.ascontiguousarray(frame))
    writer.close()


def _even(array: UInt8[np.ndarray, "t h w 3"]) -> UInt8[np.ndarray, "t h2 w2 3"]:
    odd = ((0, 0), (0, array.shape[1] % 2), (0, array.shape[2] % 2), (0, 0))
    return np.pad(array, odd, mode="edge")


def _installed(name: str) -> bool:
    return importlib.util.find_spec(name) is not None
