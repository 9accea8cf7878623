"""Train the video tokenizer of `embedded/nar-scenes-video`: 8 frames of 32x32 to 4x8x8 tokens.

    python scripts/train_embedded/nar_video_tokenizer.py --minutes 12                       # one
    torchrun --nproc-per-node 2 scripts/train_embedded/nar_video_tokenizer.py --minutes 12  # two

L1 + L2 reconstruction through FSQ on fresh clips of seen objects; resumes from its work folder.
"""

import argparse
import os
import random
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from loop import LoopConfig, rank, train

from align.models.precision import autocast
from align.nar.video_tokenizer import VideoTokenizer
from align.scenes.motion import sample_clip

ROOT = Path(__file__).parents[2]
OUT = ROOT / "align/embedded/nar-scenes-video/video_tokenizer"


def draw_clips(stream: str, step: int, count: int) -> tuple[list[str], torch.Tensor]:
    """Prompts and true clips [count, 8, 3, 32, 32] in [0, 1], of seen objects."""
    rng = random.Random(f"nar-video-{stream}-{step}")
    pairs = [sample_clip(rng) for _ in range(count)]
    clips = torch.from_numpy(np.stack([clip for _, clip in pairs]))
    return [prompt for prompt, _ in pairs], clips.permute(0, 1, 4, 2, 3).float() / 255


@torch.no_grad()
def used_codes(tokenizer: VideoTokenizer, seed: int) -> tuple[int, float]:
    """How many codes occur, and the perplexity of their distribution, over 64 clips."""
    ids = tokenizer.encode(draw_clips(f"used-{seed}", 0, 64)[1].to(tokenizer.device))
    share = torch.bincount(ids.flatten(), minlength=tokenizer.codebook_size) / ids.numel()
    entropy = -(share * share.clamp(min=1e-9).log()).sum()
    return int((share > 0).sum()), float(entropy.exp())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=12)
    parser.add_argument("--batch-size", type=int, default=16, help="per process")
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, default=ROOT / "work/nar-video-tokenizer")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if "WORLD_SIZE" in os.environ:
        dist.init_process_group("nccl" if args.device == "cuda" else "gloo")
    torch.manual_seed(args.seed)
    tokenizer = VideoTokenizer().to(args.device)
    stream = f"tokenizer-{args.seed}-{rank()}"
    config = LoopConfig(
        args.work, minutes=args.minutes, learning_rate=args.learning_rate, threads=args.threads,
        seed=args.seed, checkpoint_minutes=2.0,
    )  # fmt: skip

    def loss_fn(step: int) -> tuple[torch.Tensor, dict[str, float]]:
        clips = draw_clips(stream, step, args.batch_size)[1].to(args.device)
        with autocast(args.device):
            rebuilt = tokenizer(clips)
        error = rebuilt.float() - clips
        l2 = error.square().mean()
        return error.abs().mean() + 4 * l2, {"mse": float(l2.detach())}

    def save(ema: VideoTokenizer, step: int) -> None:
        count, perplexity = used_codes(ema.eval(), args.seed)
        print(f"step {step}: {count} codes in use, perplexity {perplexity:.0f}", flush=True)
        ema.to(torch.float16).save_pretrained(args.out)

    train(tokenizer, loss_fn, config, on_checkpoint=save)
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
