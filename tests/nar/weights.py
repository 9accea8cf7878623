"""Weights that both sides of a parity test can make: a formula, no random generator."""

import torch
from torch import Tensor


def fill(shapes: dict[str, list[int]]) -> dict[str, Tensor]:
    """Deterministic float32 values in (-scale, scale) for every key, in sorted order of keys.

    Norm weights (one dimension, ending in `weight`) lie around 1.
    """
    filled = {}
    for number, key in enumerate(sorted(shapes)):
        shape = shapes[key]
        count = int(torch.tensor(shape).prod())
        wave = torch.sin((torch.arange(count, dtype=torch.float64) + 1) * 12.9898 + number * 78.233)
        unit = (wave * 43758.5453) % 1 - 0.5  # (-0.5, 0.5), as good as noise
        fan_in = count // shape[0]
        if len(shape) == 1:
            values = unit * 0.4 + (1 if key.endswith("weight") else 0)
        else:
            values = unit * 2 * (1.7 / fan_in**0.5 if "embed" not in key else 1.0)
        filled[key] = values.view(shape).float()
    return filled
