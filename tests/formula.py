"""Weights and pictures from a formula: a reference in another environment has the same ones.

Needs torch alone. `numbers` is a pseudo-random sequence in (-1, 1): the digits of sines far behind
the point, computed in float64, the same on every machine to about 1e-9.
"""

import hashlib
import math

import torch


def numbers(name: str, shape) -> torch.Tensor:
    """float64 numbers in (-1, 1) that depend on the name and the shape."""
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big") / 2**32
    index = torch.arange(math.prod(shape), dtype=torch.float64)
    waves = torch.sin((index + 1) * 12.9898 + 78.233 * seed) * 4375.8545
    return (2 * (waves - waves.floor()) - 1).reshape(tuple(shape))


def weights(shapes: dict) -> dict:
    """float32 weights for every key: matrices of about unit gain, norms about 1, small biases."""
    made = {}
    for key, shape in shapes.items():
        value = numbers(key, shape)
        if key.endswith("logit_scale"):
            value = torch.tensor(2.5, dtype=torch.float64)
        elif len(shape) < 2:
            value = 0.1 * value if key.endswith("bias") else 1 + 0.2 * value
        elif not any(part in key for part in ("embedding", "pos_embed", "cls_token", "shared")):
            value = value * math.sqrt(3 / math.prod(shape[1:]))
        made[key] = value.float()
    return made


def pictures(count: int, height: int, width: int) -> torch.Tensor:
    """float32 pictures [count, 3, height, width] in [0.1, 0.9]: smooth, with noise on top."""
    y, x = torch.meshgrid(
        torch.linspace(0, 3, height, dtype=torch.float64),
        torch.linspace(0, 4, width, dtype=torch.float64),
        indexing="ij",
    )
    made = []
    for i in range(count):
        waves = torch.stack([torch.sin(y + x + i), torch.cos(2 * x - i), torch.sin(x * y + i)])
        noise = numbers(f"picture {i}", (3, height, width))
        made.append(0.5 + 0.3 * waves + 0.1 * noise)
    return torch.stack(made).float()
