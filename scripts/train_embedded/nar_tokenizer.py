"""Train the image tokenizer of `embedded/nar-scenes`: 64x64 pictures to 16x16 tokens.

    python scripts/train_embedded/nar_tokenizer.py --minutes 15                       # one process
    torchrun --nproc-per-node 2 scripts/train_embedded/nar_tokenizer.py --minutes 15  # two cores

L1 + L2 reconstruction through FSQ on fresh renders of seen combinations.
"""

import argparse
import os
from pathlib import Path

import torch
import torch.distributed as dist
from loop import LoopConfig, rank, train
from vae import pictures

from align.nar.tokenizer import ImageTokenizer
from align.precision import autocast

ROOT = Path(__file__).parents[2]
OUT = ROOT / "align/embedded/nar-scenes/image_tokenizer"


def make_tokenizer() -> ImageTokenizer:
    return ImageTokenizer(image_size=(64, 64), widths=(24, 64, 96), levels=(8, 5, 5, 5))


@torch.no_grad()
def used_codes(tokenizer: ImageTokenizer, seed: int) -> tuple[int, float]:
    """How many codes occur, and the perplexity of their distribution, over 256 pictures."""
    ids = tokenizer.encode((pictures(seed, -1, 256) + 1).to(tokenizer.device) / 2)
    share = torch.bincount(ids.flatten(), minlength=tokenizer.codebook_size) / ids.numel()
    entropy = -(share * share.clamp(min=1e-9).log()).sum()
    return int((share > 0).sum()), float(entropy.exp())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=15)
    parser.add_argument("--batch-size", type=int, default=32, help="per process")
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
    tokenizer = make_tokenizer().to(args.device, memory_format=torch.channels_last)
    stream = args.seed + 1000 * rank()
    config = LoopConfig(
        args.work, minutes=args.minutes, learning_rate=2e-3, threads=args.threads, seed=args.seed
    )

    def loss_fn(step: int):
        images = ((pictures(stream, step, args.batch_size) + 1) / 2).to(args.device)
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
