"""Pictures moved to where a detector sees something else than what was drawn, to learn from.

A reward that is climbed leads to where it is wrong, unless it has seen such places. Each picture
gets labels in which one thing is false (`altered`), and moves a short way towards being read so: in
its pixels (Madry et al. 2018), in its latents, or in the noise of one step of `scenes-turbo`, the
way that noise search moves. Its true labels stay.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass

import torch
from detector_data import Labelled, as_float, draw_clean
from odd_objects import NO_COLOR, NO_SHAPE
from torch import Tensor

import align
from align.models.precision import autocast

LossOf = Callable[[Tensor, Tensor], Tensor]  # images and labels to a loss of each picture
SPACES = ("latents", "noise")


def altered(labels: Tensor, rng: random.Random) -> Tensor:
    """Labels [n, m, f] with one false thing a picture: another colour, shape or texture of an
    object, an object gone, one too many, one elsewhere, or two of one sort exchanged in depth."""
    labels = labels.clone()
    for rows in labels:
        there = [i for i in range(len(rows)) if rows[i, 0].isfinite()]
        if not there:
            continue
        i, free = rng.choice(there), [j for j in range(len(rows)) if j not in there]
        kind = rng.choice(("color", "color", "shape", "shape", "texture", "gone", "more", "moved"))
        if kind == "color":
            rows[i, 0] = (rows[i, 0] + rng.randrange(1, NO_COLOR)) % NO_COLOR
        elif kind == "shape":
            rows[i, 1] = (rows[i, 1] + rng.randrange(1, NO_SHAPE)) % NO_SHAPE
        elif kind == "texture" and rows[i, 2] >= 0:
            rows[i, 2] = (rows[i, 2] + rng.randrange(1, 3)) % 3
        elif kind == "more" and free:
            rows[free[0]] = rows[i]
            rows[free[0], 3:5] = torch.tensor([rng.uniform(9, 55), rng.uniform(9, 55)])
        elif kind == "moved":
            rows[i, 3:5] += torch.tensor([rng.choice((-8.0, 8.0)), rng.choice((-8.0, 8.0))])
        elif len(there) > 1 or kind == "gone":
            rows[i] = torch.nan
    return labels


def norms(x: Tensor) -> Tensor:
    return x.flatten(1).norm(dim=1).clamp(min=1e-12).view(-1, *[1] * (x.ndim - 1))


def move(
    start: Tensor,
    make: Callable[[Tensor], Tensor],
    loss_of: Callable[[Tensor], Tensor],
    radius: float,
    steps: int,
    generator: torch.Generator,
) -> Tensor:
    """`start` [n, ...], moved by up to `radius` (L2, another part of it each) to where
    `loss_of(make(start))` is lower."""
    radii = radius * torch.rand(len(start), generator=generator).view(-1, *[1] * (start.ndim - 1))
    moved = torch.randn(start.shape, generator=generator)
    moved *= 0.3 * radii / norms(moved)
    for _ in range(steps):
        moved.requires_grad_(True)
        (gradient,) = torch.autograd.grad(loss_of(make(start + moved)).sum(), moved)
        moved = moved.detach() - 1.5 / steps * radii * gradient / norms(gradient)
        moved *= (radii / norms(moved)).clamp(max=1)
    return start + moved


def moved_pixels(
    data: Labelled, loss_of: LossOf, radius: float, steps: int, rng: random.Random
) -> Labelled:
    """The same pictures, moved in their pixels."""
    false, generator = altered(data.labels, rng), torch.Generator().manual_seed(rng.getrandbits(40))
    images = move(data.images, lambda x: x, lambda x: loss_of(x, false), radius, steps, generator)
    return Labelled(images.clamp(0, 1).detach(), data.labels, data.drawn)


@dataclass(frozen=True)
class Movers:
    """`scenes-turbo`, frozen, and the two spaces in which pictures are moved through it."""

    pipe: object

    @classmethod
    def load(cls) -> "Movers":
        pipe = align.load_pipeline("embedded/scenes-turbo")
        for part in (pipe.unet, pipe.vae, pipe.text_encoder):
            part.requires_grad_(False)
        return cls(pipe)

    def __call__(
        self, loss_of: LossOf, count: int, radii: dict[str, float], steps: int, rng: random.Random
    ) -> Labelled:
        """`count` fresh pictures moved in their latents, or in the noise of one step of turbo from
        timestep 249 or 499; `radii` as shares of the length of what is moved."""
        pipe, space = self.pipe, rng.choice(SPACES)
        gentle = space == "latents" or rng.random() < 0.5
        clean, labels, prompts = draw_clean(rng, count, 0.4 if gentle else 0.0)
        generator = torch.Generator().manual_seed(rng.getrandbits(40))
        scale, false = pipe.vae.config.scaling_factor, altered(labels, rng)
        with torch.no_grad(), autocast("cpu"):
            drawn = as_float(clean)
            latents = pipe.vae.encode(drawn * 2 - 1).latent_dist.mean.float() * scale

        def decode(z: Tensor) -> Tensor:
            return (pipe.vae.decode(z / scale).sample.float() / 2 + 0.5).clamp(0, 1)

        if space == "latents":
            start, make = latents, decode
        else:
            t = torch.tensor(249 if gentle else rng.choice((249, 499)))
            ids = pipe.tokenizer(
                prompts, padding="max_length", truncation=True, return_tensors="pt"
            )
            with torch.no_grad():
                embeds = pipe.text_encoder(ids.input_ids)[0]
            alpha = pipe.scheduler.alphas_cumprod[t] ** 0.5
            sigma = (1 - alpha**2) ** 0.5
            start = torch.randn(latents.shape, generator=generator)

            def make(noise: Tensor) -> Tensor:
                noised = alpha * latents + sigma * noise
                v = pipe.unet(noised, t, embeds).sample.float()
                return decode(alpha * noised - sigma * v)

        radius = radii[space] * start[0].numel() ** 0.5
        with autocast("cpu"):
            moved = move(start, make, lambda x: loss_of(x, false), radius, steps, generator)
            with torch.no_grad():
                images = make(moved)
        return Labelled(images.detach(), labels, drawn if gentle else drawn * torch.nan)
