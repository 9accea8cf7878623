"""How far generated pictures lie from real ones, in CLIP-type features, and from training ones."""

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from align.runs.files import brief
from align.runs.pictures import SUFFIXES, is_picture, read_picture
from align.scenes import CATEGORIES, layout, parse, render
from align.scenes.dataset import random_stated_scene

Features = Callable[[Float[Tensor, "b 3 h w"]], Float[Tensor, "b d"]]
SIGMA, SCALE = 10.0, 1000.0  # of CMMD, as published
TRAINING_PICTURES = 4000  # searched for the nearest, of those a training process draws first


@torch.no_grad()
def cmmd(real: Float[Tensor, "n d"], made: Float[Tensor, "m d"]) -> float:
    """1000 times the squared maximum mean discrepancy under a Gaussian kernel of width 10.

    Jayasumana et al. 2024 (arXiv 2401.09603), on features of unit length.
    """

    def kernel(a: Tensor, b: Tensor) -> float:
        return torch.exp(-torch.cdist(a, b).square() / (2 * SIGMA**2)).mean().item()

    real, made = real.double(), made.double()
    return SCALE * (kernel(real, real) + kernel(made, made) - 2 * kernel(real, made))


@torch.no_grad()
def frechet(real: Float[Tensor, "n d"], made: Float[Tensor, "m d"]) -> float:
    """|mean difference|² + tr(A + B - 2 (A B)^½) of the covariances A and B (Heusel et al. 2017).

    Few pictures raise it, so compare only figures of the same numbers of pictures.
    """
    if min(len(real), len(made)) < 2:
        raise ValueError(f"got {len(real)} and {len(made)} pictures; a covariance needs 2 of each")
    real, made = real.double(), made.double()
    a, b = torch.cov(real.T), torch.cov(made.T)
    values, vectors = torch.linalg.eigh(a)
    root = vectors * values.clamp_min(0).sqrt() @ vectors.T
    cross = torch.linalg.eigvalsh(root @ b @ root).clamp_min(0).sqrt().sum()
    gap = (real.mean(0) - made.mean(0)).square().sum()
    return max(0.0, (gap + a.trace() + b.trace() - 2 * cross).item())


def scenes_features(device: str | None = None) -> Features:
    """Unit features of the image tower of `scenes-clip`. Raises FileNotFoundError without it."""
    from align.rewards.scenes_clip import load

    tower = load(None, device).image_tower
    return lambda images: tower(images.to(device or "cpu")).cpu()


def clip_features(name: str, device: str | None = None) -> Features:
    """Unit image features of a CLIP with a projection: a folder or a Hub id.

    Raises FileNotFoundError, in one sentence, where there is none.
    """
    from transformers import CLIPImageProcessor, CLIPVisionModelWithProjection

    try:
        model: Any = CLIPVisionModelWithProjection.from_pretrained(name)
        processor = CLIPImageProcessor.from_pretrained(name)
    except OSError as error:
        raise FileNotFoundError(
            f"--clip {name} is no CLIP folder and could not be loaded from the Hub ({brief(error)})"
        ) from error
    model.eval().to(device or "cpu")

    def features(images: Tensor) -> Tensor:
        pixels = processor(images=list(images), do_rescale=False, return_tensors="pt").pixel_values
        embeds = model(pixel_values=pixels.to(model.device)).image_embeds
        return torch.nn.functional.normalize(embeds.float(), dim=-1).cpu()

    return features


@torch.no_grad()
def in_batches(features: Features, images: Sequence[Tensor], batch: int = 64) -> Tensor:
    """Features [n, d] of pictures [3, h, w] in [0, 1], which may differ in size."""
    rows: list[Tensor] = []
    start = 0
    while start < len(images):
        alike = [one for one in images[start : start + batch] if one.shape == images[start].shape]
        stop = start + len(alike)
        if any(one.shape != images[start].shape for one in images[start:stop]):
            alike, stop = [images[start]], start + 1  # sizes alternate: one by one
        rows.append(features(torch.stack(alike)))
        start = stop
    return torch.cat(rows)


def true_scenes(prompts: Sequence[str], count: int, seed: int) -> list[Float[Tensor, "3 64 64"]]:
    """`count` renders of what the prompts state, prompts in turn."""
    rng = random.Random(f"align-real-{seed}")
    return [_tensor(render(layout(parse(prompts[i % len(prompts)]), rng))) for i in range(count)]


def real_pictures(folder: str) -> list[Float[Tensor, "3 h w"]]:
    """The pictures of a folder, in [0, 1]. Raises FileNotFoundError, ValueError if it has none."""
    if not Path(folder).is_dir():
        raise FileNotFoundError(f"no folder of real pictures {folder}")
    files = sorted(f for f in Path(folder).rglob("*") if is_picture(f.relative_to(folder)))
    if not files:
        raise ValueError(f"--real {folder} has no pictures ({', '.join(SUFFIXES)})")
    return [_tensor(np.array(read_picture(file))) for file in files]


def training_pictures(count: int = TRAINING_PICTURES) -> Float[Tensor, "n 3 64 64"]:
    """The first pictures of the pool that `scripts/train_embedded/scenes.py` trained on last (seed
    2, first process), drawn again as it draws them."""
    rng = random.Random("scenes-pool-2-0")
    pictures: list[Tensor] = []
    while len(pictures) < count:
        start = len(pictures)
        batch = [
            random_stated_scene(CATEGORIES[i % len(CATEGORIES)], rng)
            for i in range(start, start + 100)
        ]
        pictures += [_tensor(render(layout(scene, rng))) for scene in batch]
    return torch.stack(pictures[:count])


@torch.no_grad()
def nearest_distance(
    images: Sequence[Float[Tensor, "3 64 64"]], training: Float[Tensor, "n 3 64 64"]
) -> Float[Tensor, " b"]:
    """Root mean square distance of each picture to the nearest training picture, in [0, 1]."""
    flat = torch.stack(list(images)).flatten(1)
    known = training.flatten(1)
    nearest = torch.cdist(flat, known).argmin(1)  # fast, but loses small distances to rounding
    return (flat - known[nearest]).square().mean(1).sqrt()


def _tensor(pixels: np.ndarray) -> Float[Tensor, "3 h w"]:
    return torch.from_numpy(pixels).permute(2, 0, 1).float() / 255
