"""A guard against over-fitting the rewards: a good picture stays good when it changes a little.

An optimized image may owe its score to details that no eye sees. The guard scores slightly moved
and noised copies of it, which takes no pass of the generator.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

SHIFTS = ((1, 1), (-1, -1), (2, -1), (-1, 2))  # pixels at a side of 64, in proportion elsewhere
NOISE = 0.02  # standard deviation of the pixels' noise


def disturbed(image: Float[Tensor, "3 h w"]) -> Float[Tensor, "m 3 h w"]:
    """Copies of an image in [0, 1], each shifted by a pixel or two and lightly noised."""
    generator = torch.Generator().manual_seed(0)
    unit = max(1, round(min(image.shape[1:]) / 64))
    border = 2 * unit
    wide = F.pad(image[None], (border,) * 4, mode="replicate")[0]
    height, width = image.shape[1:]
    copies = []
    for down, right in SHIFTS:
        top, left = border + down * unit, border + right * unit
        part = wide[:, top : top + height, left : left + width]
        noise = NOISE * torch.randn(image.shape, generator=generator, dtype=image.dtype)
        copies.append((part + noise.to(image.device)).clamp(0, 1))
    return torch.stack(copies)
