"""Pictures to train rewards on: renders with the faults of generated images."""

import io
import random
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import DiffusionPipeline
from near_misses import draw_groups
from PIL import Image
from torch import Tensor

from align.scenes.dataset import describe
from align.scenes.grammar import Scene
from align.scenes.render import render

GENERATOR = Path(__file__).parents[2] / "align/embedded/scenes"


def jpeg(image: np.ndarray, quality: int) -> np.ndarray:
    """An image uint8 (h, w, 3) after one JPEG file."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=quality)
    return np.asarray(Image.open(buffer))


def _smooth_noise(count: int, channels: int, cells: int, generator) -> Tensor:
    noise = torch.randn(count, channels, cells, cells, generator=generator)
    return F.interpolate(noise, (64, 64), mode="bicubic", align_corners=False)


def degrade(images: Tensor, generator: torch.Generator) -> Tensor:
    """Images in [0, 1] with the faults of generated ones: wobble, blur, blotches, tints, noise.

    Every fault has its own strength per image, often zero.
    """
    n = len(images)

    def strength(top: float) -> Tensor:
        drawn = torch.rand(n, 1, 1, 1, generator=generator) * 1.5 - 0.5
        return top * drawn.clamp(min=0)

    # a smooth displacement of up to about 1.5 px
    axis = torch.linspace(-1, 1, 64) * (63 / 64)
    grid = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), -1)
    shift = (strength(1.0) * _smooth_noise(n, 2, 9, generator) / 32).permute(0, 2, 3, 1)
    x = F.grid_sample(images, grid + shift, padding_mode="border", align_corners=False)
    softened = F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)
    x = x + strength(1.0) * (softened - x)
    x = x + strength(0.12) * _smooth_noise(n, 3, 16, generator)
    x = x + strength(0.06) * torch.randn(n, 3, 1, 1, generator=generator)
    x = x + strength(0.08) * torch.randn(x.shape, generator=generator)
    return x.clamp(0, 1)


def pictures(drawn: list[Scene], rng: random.Random, seed: int) -> Tensor:
    """Degraded renders (n, 3, 64, 64) in [0, 1]; a fifth through JPEG, a fifth left clean."""
    images = []
    for scene in drawn:
        image = render(scene)
        images.append(jpeg(image, rng.randint(40, 90)) if rng.random() < 0.2 else image)
    x = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 255
    noisy = degrade(x, torch.Generator().manual_seed(seed))
    clean = torch.tensor([rng.random() < 0.2 for _ in drawn])
    return torch.where(clean[:, None, None, None], x, noisy)


@torch.no_grad()
def redraw(
    pipe, images: Tensor, prompts: list[str], steps: int, seed: int, of_steps: int = 12
) -> Tensor:
    """Low-noise image-to-image: images in [0, 1] noised as before the last `steps` of `of_steps`
    and denoised again by DDIM without guidance, so that layout stays and surfaces become generated;
    at 0 the round trip through the autoencoder alone."""
    vae, scheduler = pipe.vae, pipe.scheduler
    latents = vae.encode(images * 2 - 1).latent_dist.mean * vae.config.scaling_factor
    scheduler.set_timesteps(of_steps)
    timesteps = scheduler.timesteps[of_steps - steps :]
    if len(timesteps):
        ids = pipe.tokenizer(prompts, padding="max_length", truncation=True, return_tensors="pt")
        embeds = pipe.text_encoder(ids.input_ids)[0]
        noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(seed))
        latents = scheduler.add_noise(latents, noise, timesteps[:1].repeat(len(latents)))
    for t in timesteps:
        v = pipe.unet(latents, t, embeds).sample
        latents = scheduler.step(v, t, latents).prev_sample
    return (vae.decode(latents / vae.config.scaling_factor).sample / 2 + 0.5).clamp(0, 1)


def redrawn_pool(count: int, seed: int, draw=draw_groups, batch: int = 64):
    """`count` pictures, uint8 (count, 3, 64, 64), redrawn by the embedded generator at strengths of
    0 to 0.5, with their (stated, placed) scenes from `draw(rng, batch)` of near_misses.py."""
    pipe = DiffusionPipeline.from_pretrained(GENERATOR, safety_checker=None)
    rng = random.Random(f"redrawn-{seed}")
    said, drawn, images = [], [], []
    while len(said) < count:
        stated, placed = draw(rng, batch)
        x = torch.from_numpy(np.stack([render(s) for s in placed])).permute(0, 3, 1, 2) / 255
        prompts = ["" if s is None else describe(s, rng) for s in stated]
        x = redraw(pipe, x, prompts, rng.choice((0, 2, 3, 4, 5, 6)), rng.getrandbits(40))
        images.append((x * 255).round().to(torch.uint8))
        said, drawn = said + stated, drawn + placed
    return torch.cat(images), said, drawn
