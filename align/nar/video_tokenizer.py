"""Clips to a 3-D grid of token ids and back.

A token is a block of `time_patch` frames by a square of pixels, and its code depends on that block
alone, so the grid of tokens is a true one in time, rows and columns: what the order of
`align.nar.grid` supposes. The decoder looks around, in time as well.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from jaxtyping import Float, Int
from torch import Tensor, nn
from vector_quantize_pytorch import FSQ

from align.nar.tokenizer import make_decoder, make_encoder


class Mixer(nn.Module):
    """x + conv(act(conv(act(x)))) over time, rows and columns."""

    def __init__(self, width: int):
        super().__init__()
        self.conv1 = nn.Conv3d(width, width, 3, padding=1)
        self.conv2 = nn.Conv3d(width, width, 3, padding=1)
        nn.init.zeros_(self.conv2.weight)
        nn.init.zeros_(self.conv2.bias)  # pyright: ignore[reportArgumentType]

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.silu(self.conv1(F.silu(x))))


class VideoTokenizer(ModelMixin, ConfigMixin):
    """Clips of one size to token ids, by FSQ.

    Args:
        num_frames: frames of a clip, a multiple of `time_patch`.
        image_size: (height, width) in pixels, multiples of `2 ** (len(widths) - 1)`.
        time_patch: frames of a token.
        widths: channels at each resolution; n of them make squares of 2 ** (n - 1) pixels.
        blocks: residual blocks of the decoder over the token grid.
        levels: levels per dimension of FSQ; their product is the number of codes.

    Raises:
        ValueError: a size that does not divide.
    """

    config: Any

    @register_to_config
    def __init__(
        self,
        num_frames: int = 8,
        image_size: Sequence[int] = (32, 32),
        time_patch: int = 2,
        widths: Sequence[int] = (32, 64, 80),
        blocks: int = 1,
        levels: Sequence[int] = (8, 5, 5, 5),
    ):
        super().__init__()
        patch, widths = 2 ** (len(widths) - 1), tuple(widths)
        height, width = image_size
        if num_frames < time_patch or num_frames % time_patch:
            raise ValueError(f"{num_frames} frames: must be a multiple of {time_patch}")
        if min(height, width) < patch or height % patch or width % patch:
            raise ValueError(f"image size {height}x{width}: must be multiples of {patch} pixels")
        self.grid_shape = (num_frames // time_patch, height // patch, width // patch)
        channels = 3 * time_patch  # the frames of a token beside each other
        self.encoder = make_encoder(widths, 0, len(levels), channels)
        first = nn.Conv3d(len(levels), widths[-1], 3, padding=1)
        self.mixer = nn.Sequential(first, *(Mixer(widths[-1]) for _ in range(blocks)))
        self.decoder = make_decoder(widths, 0, widths[-1], channels)
        self.quantize: Any = FSQ(list(levels), channel_first=True)
        self.codebook_size = self.quantize.codebook_size

    def check_clips(self, clips: Tensor) -> None:
        """ValueError unless `clips` are [batch, frames, 3, height, width] of the right size."""
        c = self.config
        expected = (c.num_frames, 3, *c.image_size)
        if clips.ndim != 5 or tuple(clips.shape[1:]) != expected:
            sides = ", ".join(str(side) for side in expected)
            raise ValueError(f"the tokenizer takes clips [batch, {sides}], got {list(clips.shape)}")

    def _codes(self, clips: Float[Tensor, "b t 3 h w"]) -> tuple[Tensor, Tensor]:
        """Quantized codes (b, c, t, h, w) and their ids (b, t, h, w)."""
        steps, pair = self.grid_shape[0], self.config.time_patch
        together = (clips * 2 - 1).unflatten(1, (steps, pair)).flatten(2, 3).flatten(0, 1)
        latent = self.encoder(together).float().unflatten(0, (-1, steps)).transpose(1, 2)
        return self.quantize(latent)

    def _rebuild(self, codes: Float[Tensor, "b c l h2 w2"]) -> Float[Tensor, "b t 3 h w"]:
        mixed = self.mixer(codes).transpose(1, 2)  # (b, t, c, h, w)
        frames = self.decoder(mixed.flatten(0, 1)).unflatten(1, (self.config.time_patch, 3))
        return (frames.unflatten(0, (-1, self.grid_shape[0])).flatten(1, 2) + 1) / 2

    def forward(self, clips: Float[Tensor, "b t 3 h w"]) -> Float[Tensor, "b t 3 h w"]:
        """Reconstruction (unclamped), for training."""
        return self._rebuild(self._codes(clips)[0].to(clips.dtype))

    @torch.no_grad()
    def encode(self, clips: Float[Tensor, "b t 3 h w"]) -> Int[Tensor, "b n"]:
        """Token ids of clips in [0, 1], raster order: time, rows, columns."""
        self.check_clips(clips)
        clips = clips.to(next(self.encoder.parameters()).dtype)
        return self._codes(clips)[1].flatten(1).long()

    def decode(self, ids: Int[Tensor, "b n"]) -> Float[Tensor, "b t 3 h w"]:
        """Clips in [0, 1] (float32) of token ids in raster order."""
        steps, rows, columns = self.grid_shape
        if ids.shape[1] != steps * rows * columns:
            raise ValueError(f"{ids.shape[1]} tokens do not fill the grid {self.grid_shape}")
        codes = self.quantize.indices_to_codes(ids.view(-1, steps, rows, columns))
        codes = codes.to(next(self.decoder.parameters()).dtype)
        return self._rebuild(codes).float().clamp(0, 1)
