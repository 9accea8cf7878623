"""Training on pictures of one's own: pairs of a chosen and a rejected one (Diffusion-DPO, arXiv
2311.12908), or the chosen ones alone (`sft`: plain denoising, every other method's control)."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image, ImageOps
from torch import Tensor
from tqdm import tqdm

from align.alignprop.drawn import group_noises, learning_denoiser
from align.alignprop.preferences import diffusion_dpo_loss, gains
from align.alignprop.update import BatchLoss
from align.alignprop.windows import Draw
from align.diffusion.denoisers import family_of, image_size
from align.diffusion.forward_process import coefficients, corrupt, prediction_kind, target
from align.diffusion.pixels import encode
from align.language.pairs import Pair, Source, open_picture
from align.language.prompts import PromptSet, draw_prompts
from align.models.lora import lora_disabled
from align.training.runs import Run

STEPS_OF_SIDE = 8  # sizes of a bucket lie a model's own side / 8 apart


@dataclass(frozen=True)
class Bucket:
    """Pictures of one size: the rows of their pairs, and their latents."""

    rows: list[int]
    chosen: Float[Tensor, "n c h w"]
    rejected: Float[Tensor, "n c h w"] | None


def prompts_of(pairs: Sequence[Pair]) -> PromptSet:
    """The pairs' prompts, row by row."""
    return PromptSet("pairs", [pair.prompt for pair in pairs], [{} for _ in pairs])


def bucket_size(size: tuple[int, int], own: tuple[int, int], unit: int) -> tuple[int, int]:
    """(height, width) nearest in shape to a picture of `size`, at most as large as the model's
    `own` in area, the sides multiples of an eighth of its side and of `unit`."""
    area = own[0] * own[1]
    step = max(unit, round(area**0.5 / STEPS_OF_SIDE / unit) * unit)
    sides = range(step, 2 * max(own) + 1, step)
    shape = size[0] / size[1]

    def unlike(height: int) -> tuple[float, int]:
        width = max(step, area // height // step * step)
        return abs(np.log(height / width / shape)), -height * width

    height = min(sides, key=unlike)
    return height, max(step, area // height // step * step)


def encode_pairs(
    pairs: Sequence[Pair], pipe: Any, height: int | None, width: int | None
) -> list[Bucket]:
    """Every picture resized to its bucket and encoded, once; the latents stay in main memory.

    The size of a pair is that of its chosen picture, or (height, width) where they are given.
    Raises ValueError naming a picture that cannot be read.
    """
    own, unit = image_size(pipe, height, width), _unit(pipe)
    sizes: dict[tuple[int, int], list[int]] = {}
    for row, pair in enumerate(pairs):
        if height is None and width is None:
            picture = open_picture(pair.chosen)
            size = bucket_size((picture.height, picture.width), own, unit)
        else:
            size = own
        sizes.setdefault(size, []).append(row)
    buckets = []
    with tqdm(total=len(pairs), unit="pair", desc="encoding") as progress:
        for size, rows in sorted(sizes.items()):
            sides: list[Any] = []
            for side in ("chosen", "rejected"):
                sources = [getattr(pairs[row], side) for row in rows]
                if None in sources:
                    sides.append(None)
                    continue
                sides.append(torch.cat([_latents(source, size, pipe) for source in sources]))
            buckets.append(Bucket(rows, *sides))
            progress.update(len(rows))
    return buckets


def pairs_loss(run: Run, update: int, indices: Sequence[int]) -> BatchLoss:
    """Diffusion-DPO's loss on pairs of the update's bucket, one pair an index, at
    `pair_timesteps` timesteps, one denoiser call each."""
    c = run.config
    bucket, rows = _rows(run, update, indices)
    assert bucket.rejected is not None  # read so for this method
    latents = torch.cat([bucket.chosen[rows], bucket.rejected[rows]]).to(run.parameters[0].device)
    embeds = run.sampler.embed([run.prompts.prompts[bucket.rows[row]] for row in rows] * 2)
    denoise = learning_denoiser(run, embeds, latents)
    noise, timesteps = group_noises(run, denoise, update, indices, latents[:1])
    losses, distances, right = [], [], []
    for n in range(c.pair_timesteps):
        part = slice(n, None, c.pair_timesteps)
        better, distance = gains(
            run, denoise, latents, noise[part].repeat(2, 1, 1, 1), timesteps[part].repeat(2)
        )
        won, lost = better.chunk(2)
        losses.append(diffusion_dpo_loss(won, lost, c.beta).mean())
        distances.append(distance)
        right.append((won > lost).float().mean())
    kl = torch.stack(distances).mean()
    loss = torch.stack(losses).mean()
    return BatchLoss(
        loss=loss + c.kl_weight * kl,
        draw=Draw("dpo", ()),
        kl=kl.detach(),
        figures={"loss": loss.detach(), "pairs_right": torch.stack(right).mean()},
    )


def chosen_loss(run: Run, update: int, indices: Sequence[int]) -> BatchLoss:
    """The mean squared error of the denoiser at the chosen pictures of the update's bucket."""
    c, scheduler = run.config, run.pipe.scheduler
    bucket, rows = _rows(run, update, indices)
    latents = bucket.chosen[rows].to(run.parameters[0].device)
    embeds = run.sampler.embed([run.prompts.prompts[bucket.rows[row]] for row in rows])
    denoise = learning_denoiser(run, embeds, latents)
    noise, timesteps = group_noises(run, denoise, update, indices, latents[:1])
    kind, clean = prediction_kind(scheduler), latents * denoise.latent_scale
    assert kind is not None  # checked before the run
    losses, distances = [], []
    for n in range(c.pair_timesteps):
        part = slice(n, None, c.pair_timesteps)
        a, s = coefficients(scheduler, timesteps[part])
        noised = corrupt(clean, noise[part], a, s)
        output = denoise(noised, timesteps[part]).float()
        losses.append((output - target(kind, clean, noise[part], a, s)).square().mean())
        if c.kl_weight:
            with torch.no_grad(), lora_disabled(run.pipe):
                base = denoise(noised, timesteps[part]).float()
            distances.append((output - base).square().mean())
    loss = torch.stack(losses).mean()
    kl = torch.stack(distances).mean() if distances else None
    return BatchLoss(
        loss=loss if kl is None else loss + c.kl_weight * kl,
        draw=Draw("sft", ()),
        kl=None if kl is None else kl.detach(),
        figures={"loss": loss.detach()},
    )


def _rows(run: Run, update: int, indices: Sequence[int]) -> tuple[Bucket, list[int]]:
    """An update's bucket, the same for all its images, and the rows within it."""
    buckets, seed = run.sampler.buckets, run.config.seed
    counts = [len(bucket.rows) for bucket in buckets]
    (bucket,) = random.Random(f"align-bucket-{seed}-{update}").choices(buckets, counts)
    return bucket, draw_prompts(len(bucket.rows), seed=seed, update=update, indices=indices)


def _latents(source: Source, size: tuple[int, int], pipe: Any) -> Float[Tensor, "1 c h w"]:
    picture = ImageOps.fit(open_picture(source), (size[1], size[0]), Image.Resampling.LANCZOS)
    pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None].float() / 255
    return encode(pipe, pixels).cpu()


def _unit(pipe: Any) -> int:
    family = family_of(pipe)
    return family.latent_factor(pipe) * family.latent_patch
