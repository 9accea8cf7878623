"""`align nar tokenizer`: train an image tokenizer on pictures of one's own."""

import logging
import math
from pathlib import Path

import torch
from torch import Tensor, nn

from align.config.nar import NarTokenizerConfig
from align.nar.tokenizer import ImageTokenizer
from align.nar.training.cache import digest_of_pictures
from align.nar.training.data import Picture, find_pictures, load_pixels
from align.nar.training.fit import make_run, open_processes, train_on_pictures
from align.runs.folder import check_folder, image_grid, save_image
from align.training.runs import Run, open_folder
from align.training.seeding import seeded

log = logging.getLogger(__name__)
MEMORY = 1 << 30  # bytes of decoded pictures to keep


def train_tokenizer(config: NarTokenizerConfig) -> Path:
    """Train by L1 + L2 reconstruction; returns the tokenizer's folder, `OUT/tokenizer`.

    `images/reconstructions.png` shows pictures above what the tokenizer makes of them.

    Raises:
        ValueError, FileNotFoundError: no pictures, unreadable ones, a folder that is in use.
        Diverged: the loss or the gradient is not finite.
        KeyboardInterrupt: after saving.
    """
    check_folder(config.out, config.overwrite, config.resume)
    pictures = find_pictures(config.data)
    accelerator = open_processes(config)
    with seeded(config.seed):
        tokenizer = make_tokenizer(config)
    load = pixel_loader(pictures, config.image_size)
    folder = open_folder(config, accelerator, "nar tokenizer")
    groups = [{"params": list(tokenizer.parameters())}]
    contents = {"data": digest_of_pictures(pictures)}
    run = make_run(config, folder, accelerator, tokenizer, groups, contents)

    def loss_fn(model: nn.Module, update: int, indices: list[int]) -> tuple[Tensor, dict]:
        images = load(indices).to(accelerator.device)
        rebuilt, extra = model(images)
        error = rebuilt.float() - images
        l2 = error.square().mean()
        return error.abs().mean() + 4 * l2 + extra, {"mse": float(l2.detach())}

    train_on_pictures(run, loss_fn, len(pictures))
    if accelerator.is_main_process:
        _finish(run, load(list(range(min(8, len(pictures))))).to(accelerator.device))
    return folder / "tokenizer"


def make_tokenizer(config: NarTokenizerConfig) -> ImageTokenizer:
    """The network that a config describes."""
    stages = int(math.log2(config.patch)) + 1
    return ImageTokenizer(
        image_size=(config.image_size, config.image_size),
        widths=tuple(config.width * min(2**stage, 4) for stage in range(stages)),
        context=config.context,
        quantizer=config.quantizer,
        levels=tuple(config.levels),
        codebook_size=config.codebook_size,
    )


def pixel_loader(pictures: list[Picture], size: int):
    """A function from indices to float pictures [b, 3, size, size] in [0, 1].

    Decoded pictures are kept, up to a gigabyte.
    """
    kept: dict[int, Tensor] = {}
    room = MEMORY // (3 * size * size)

    def load(indices: list[int]) -> Tensor:
        rows = []
        for index in indices:
            pixels = kept.get(index)
            if pixels is None:
                pixels = load_pixels(pictures[index], (size, size))
                if len(kept) < room:
                    kept[index] = pixels
            rows.append(pixels)
        return torch.stack(rows).float() / 255

    return load


def _finish(run: Run, shown: Tensor) -> None:
    """Save the tokenizer and a sheet of pictures above their reconstructions."""
    tokenizer: ImageTokenizer = run.result()
    tokenizer.save_pretrained(run.folder / "tokenizer")
    ids = tokenizer.encode(shown)
    with torch.no_grad():
        rebuilt = tokenizer.decode(ids)
    sheet = image_grid(torch.cat([shown, rebuilt]).cpu(), columns=len(shown))
    save_image(run.folder / "images/reconstructions.png", sheet, prompt="pictures, reconstructions")
    used = ids.unique().numel()
    log.info("mean squared error %.5f; %d codes in use", (rebuilt - shown).square().mean(), used)
