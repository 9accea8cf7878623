"""Train the image tokenizer of `embedded/nar-scenes`: 64x64 pictures to 8x8 tokens.

    python scripts/train_embedded/nar_tokenizer.py --minutes 26                       # one process
    torchrun --nproc-per-node 2 scripts/train_embedded/nar_tokenizer.py --minutes 26  # two cores
    python scripts/train_embedded/nar_tokenizer.py --minutes 10 --decoder-only --seed 1

The last sharpens the shipped decoder and leaves the codes, which the token model has learned, as
they are. L1 + L2 reconstruction through FSQ on fresh renders of seen combinations.
"""

import argparse
import os
import random
from pathlib import Path

import torch
import torch.distributed as dist
from loop import LoopConfig, rank, train
from vae import pictures

from align.nar.tokenizer import ImageTokenizer
from align.precision import autocast

ROOT = Path(__file__).parents[2]
LATTICE = 4  # of the pictures that the token model learns: half of those here
OUT = ROOT / "align/embedded/nar-scenes/image_tokenizer"


def make_tokenizer() -> ImageTokenizer:
    return ImageTokenizer(image_size=(64, 64), widths=(24, 48, 96, 160), levels=(5, 5, 5, 5, 5))


def crops(images: torch.Tensor, step: int, stream: int) -> torch.Tensor:
    """Two random 32x32 crops of every picture, along token borders; whole ones every fourth step.

    Most of a picture is background, which is learned at once: crops about the middle are four
    times cheaper and hold most of the edges. The whole pictures show the decoder their borders.
    """
    if step % 4 == 3:
        return images[: len(images) // 2]
    rng = random.Random(f"nar-crops-{stream}-{step}")
    corners = [(rng.randrange(0, 33, 8), rng.randrange(0, 33, 8)) for _ in range(2 * len(images))]
    parts = [images[i // 2, :, y : y + 32, x : x + 32] for i, (y, x) in enumerate(corners)]
    return torch.stack(parts)


@torch.no_grad()
def used_codes(tokenizer: ImageTokenizer, seed: int) -> tuple[int, float]:
    """How many codes occur, and the perplexity of their distribution, over 256 pictures."""
    ids = tokenizer.encode((pictures(seed, -1, 256) + 1).to(tokenizer.device) / 2)
    share = torch.bincount(ids.flatten(), minlength=tokenizer.codebook_size) / ids.numel()
    entropy = -(share * share.clamp(min=1e-9).log()).sum()
    return int((share > 0).sum()), float(entropy.exp())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=26)
    parser.add_argument("--decoder-only", action="store_true")
    parser.add_argument("--batch-size", type=int, default=8, help="per process")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, default=ROOT / "work/nar-tokenizer")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if "WORLD_SIZE" in os.environ:
        dist.init_process_group("nccl" if args.device == "cuda" else "gloo")
    torch.manual_seed(args.seed)
    tokenizer = make_tokenizer()
    if args.decoder_only:
        tokenizer = ImageTokenizer.from_pretrained(args.out, dtype=torch.float32)
        tokenizer.register_to_config(_name_or_path="")  # else this machine's folder is shipped
        tokenizer.encoder.requires_grad_(False)
    tokenizer.to(args.device, memory_format=torch.channels_last)
    stream = args.seed + 1000 * rank()
    config = LoopConfig(
        args.work,
        minutes=args.minutes,
        learning_rate=5e-4 if args.decoder_only else 2e-3,
        threads=args.threads,
        seed=args.seed,
    )

    def loss_fn(step: int):
        half = args.batch_size // 2
        images = torch.cat([pictures(stream, step, half), pictures(stream, step, half, LATTICE)])
        images = (images + 1) / 2
        images = crops(images, step, stream).to(args.device)
        with autocast(args.device):
            rebuilt, extra = tokenizer(images)
        error = rebuilt.float() - images
        l2 = error.square().mean()
        return error.abs().mean() + 4 * l2 + extra, {"mse": float(l2.detach())}

    def save(ema: ImageTokenizer, step: int) -> None:
        count, perplexity = used_codes(ema.eval(), args.seed)
        print(f"step {step}: {count} codes in use, perplexity {perplexity:.0f}", flush=True)
        ema.to(torch.float16).save_pretrained(args.out)

    train(tokenizer, loss_fn, config, on_checkpoint=save)
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
