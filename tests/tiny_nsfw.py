"""A small NSFW head in the original's layout, for the tiny CLIP."""

from pathlib import Path

import torch

from align.rewards.nsfw import LAYERS

WIDTHS = (12, 20, 12, 8, 6, 4, 1)
FILE = "LAION-AI/CLIP-based-NSFW-Detector/h14_nsfw.pth"


def head(features: int) -> dict[str, torch.Tensor]:
    """Its tensors, for unit features of this width."""
    generator = torch.Generator().manual_seed(5)
    tensors = {}
    for place, narrow, wide in zip(LAYERS, (features, *WIDTHS[:-1]), WIDTHS, strict=True):
        tensors[f"layers.{place}.weight"] = torch.randn(wide, narrow, generator=generator) / 2
        tensors[f"layers.{place}.bias"] = torch.randn(wide, generator=generator) / 4
    return tensors


def install_nsfw(folder: Path, features: int) -> None:
    """Where `align fetch nsfw` would put it."""
    (folder / FILE).parent.mkdir(parents=True)
    torch.save(head(features), folder / FILE)
