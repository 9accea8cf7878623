"""Pictures to a grid of token ids and back: a small convolutional autoencoder, FSQ or VQ.

Every code sees little more than its own patch (no normalization over the picture, kernels that
do not overlap), so that equal patches get equal codes and a token model has less to predict; the
decoder looks around to smooth the seams.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from jaxtyping import Float, Int
from torch import Tensor, nn
from vector_quantize_pytorch import FSQ, VectorQuantize

QUANTIZERS = ("fsq", "vq")


class PixelNorm(nn.Module):
    """RMSNorm over the channels of each pixel."""

    def __init__(self, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1, width, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        scale = x.float().square().mean(1, keepdim=True).add(1e-6).rsqrt()
        return x * scale.to(x.dtype) * self.weight.to(x.dtype)


class ResBlock(nn.Module):
    """x + conv(act(conv(act(norm(x)))))."""

    def __init__(self, width: int, kernel: int):
        super().__init__()
        self.norm = PixelNorm(width)
        self.conv1 = nn.Conv2d(width, width, kernel, padding=kernel // 2)
        self.conv2 = nn.Conv2d(width, width, kernel, padding=kernel // 2)
        nn.init.zeros_(self.conv2.weight)
        nn.init.zeros_(self.conv2.bias)  # pyright: ignore[reportArgumentType]

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.silu(self.conv1(F.silu(self.norm(x)))))


def make_encoder(
    widths: tuple[int, ...], context: int, code_width: int, channels: int = 3
) -> nn.Sequential:
    """3x3 convolution, a non-overlapping halving per further width, blocks, code."""
    layers: list[nn.Module] = [nn.Conv2d(channels, widths[0], 3, padding=1)]
    for narrow, wide in pairwise(widths):
        layers += [nn.SiLU(), nn.Conv2d(narrow, wide, 2, stride=2), ResBlock(wide, 1)]
    layers += [ResBlock(widths[-1], 3) for _ in range(context)]
    # normalized, so that the first codes already spread over the quantizer's levels
    return nn.Sequential(*layers, PixelNorm(widths[-1]), nn.Conv2d(widths[-1], code_width, 1))


def make_decoder(
    widths: tuple[int, ...], blocks: int, code_width: int, channels: int = 3
) -> nn.Sequential:
    """Blocks at the coarsest grid, then a doubling per width, with a block but at full size."""
    layers: list[nn.Module] = [nn.Conv2d(code_width, widths[-1], 3, padding=1)]
    layers += [ResBlock(widths[-1], 3) for _ in range(blocks)]
    for wide, narrow in pairwise(reversed(widths)):
        layers += [nn.Conv2d(wide, 4 * narrow, 1), nn.PixelShuffle(2)]
        layers += [ResBlock(narrow, 3)] if narrow != widths[0] else []
    return nn.Sequential(*layers, nn.SiLU(), nn.Conv2d(widths[0], channels, 3, padding=1))


class ImageTokenizer(ModelMixin, ConfigMixin):
    """Square or oblong pictures of one size to token ids.

    Args:
        image_size: (height, width) in pixels, multiples of `2 ** (len(widths) - 1)`.
        widths: channels at each resolution; n of them make patches of 2 ** (n - 1) pixels.
        blocks: residual blocks of the decoder at the token grid.
        context: residual 3x3 blocks of the encoder at the token grid (0: codes stay local).
        quantizer: "fsq" (no codebook to collapse, no extra loss) or "vq" (cosine, EMA).
        levels: levels per dimension of FSQ; their product is the number of codes.
        codebook_size, code_width: of VQ.

    Raises:
        ValueError: an unknown quantizer or a size that does not divide.
    """

    config: Any

    @register_to_config
    def __init__(
        self,
        image_size: Sequence[int] = (64, 64),
        widths: Sequence[int] = (32, 64, 128),
        blocks: int = 2,
        context: int = 0,
        quantizer: str = "fsq",
        levels: Sequence[int] = (8, 5, 5, 5),
        codebook_size: int = 1024,
        code_width: int = 8,
    ):
        super().__init__()
        patch = 2 ** (len(widths) - 1)
        height, width = image_size
        if min(height, width) < patch or height % patch or width % patch:
            raise ValueError(f"image size {height}x{width}: must be multiples of {patch} pixels")
        if quantizer not in QUANTIZERS:
            raise ValueError(f"quantizer {quantizer!r}: must be one of {', '.join(QUANTIZERS)}")
        widths, levels = tuple(widths), tuple(levels)
        dim = len(levels) if quantizer == "fsq" else code_width
        self.grid_shape = (height // patch, width // patch)
        self.encoder = make_encoder(widths, context, dim)
        self.decoder = make_decoder(widths, blocks, dim)
        if quantizer == "fsq":
            self.quantize: Any = FSQ(list(levels), channel_first=True)
            self.codebook_size = self.quantize.codebook_size
        else:
            self.quantize = VectorQuantize(
                code_width,
                codebook_size,
                use_cosine_sim=True,
                decay=0.99,
                threshold_ema_dead_code=2,
                accept_image_fmap=True,
            )
            self.codebook_size = codebook_size

    def check_images(self, images: Tensor) -> None:
        """ValueError unless `images` are [batch, 3, height, width] of the tokenizer's size."""
        height, width = self.config.image_size
        if images.ndim != 4 or tuple(images.shape[1:]) != (3, height, width):
            raise ValueError(
                f"the tokenizer takes pictures [batch, 3, {height}, {width}], "
                f"got {list(images.shape)}"
            )

    def _codes(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        latent = self.encoder(images * 2 - 1).float()
        if self.config.quantizer == "fsq":
            quantized, ids = self.quantize(latent)
            return quantized, ids, latent.new_zeros(())
        quantized, ids, loss = self.quantize(latent)
        return quantized, ids, loss.sum()

    def forward(
        self, images: Float[Tensor, "b 3 h w"]
    ) -> tuple[Float[Tensor, "b 3 h w"], Float[Tensor, ""]]:
        """Reconstruction (unclamped) and the quantizer's own loss, for training."""
        quantized, _, loss = self._codes(images)
        return (self.decoder(quantized.to(images.dtype)) + 1) / 2, loss

    @torch.no_grad()
    def encode(self, images: Float[Tensor, "b 3 h w"]) -> Int[Tensor, "b n"]:
        """Token ids, raster order, of pictures in [0, 1]."""
        self.check_images(images)
        images = images.to(next(self.encoder.parameters()).dtype)
        return self._codes(images)[1].flatten(1).long()

    def decode(self, ids: Int[Tensor, "b n"]) -> Float[Tensor, "b 3 h w"]:
        """Pictures in [0, 1] (float32) of token ids in raster order."""
        rows, columns = self.grid_shape
        if ids.shape[1] != rows * columns:
            raise ValueError(f"{ids.shape[1]} tokens do not fill the grid {self.grid_shape}")
        grid = ids.view(-1, rows, columns)
        if self.config.quantizer == "fsq":
            codes = self.quantize.indices_to_codes(grid)
        else:
            codes = self.quantize.get_output_from_indices(grid)
            codes = codes if codes.shape[1] == self.config.code_width else codes.movedim(-1, 1)
        codes = codes.to(next(self.decoder.parameters()).dtype)
        return ((self.decoder(codes).float() + 1) / 2).clamp(0, 1)
