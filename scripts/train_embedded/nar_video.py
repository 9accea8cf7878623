"""Train `embedded/nar-scenes-video`: a prompt to 4x8x8 tokens of 8 frames of 32x32 pixels.

    python scripts/train_embedded/nar_video_tokenizer.py --minutes 12
    python scripts/train_embedded/nar_video.py --minutes 60                       # one process
    torchrun --nproc-per-node 2 scripts/train_embedded/nar_video.py --minutes 60  # two cores

Needs the video tokenizer. "a red circle moving right": seen objects only, four directions, the
text encoder (two layers, words of its own) is trained along. One cross-entropy on the mixed logits
of the three heads; matrices inside the blocks are trained by Muon, the rest by AdamW. Seeded, and
resumes from its work folder.
"""

import argparse
import os
import random
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from loop import LoopConfig, rank, train
from nar_scenes import NULL_SHARE, MuonAdamW, hash_of
from nar_video_card import write_card
from nar_video_tokenizer import draw_clips
from torch import Tensor, nn

from align.models.precision import autocast
from align.nar.model import NARTransformer3DModel
from align.nar.scheduler import NARScheduler
from align.nar.text import learn_words, small_encoder
from align.nar.video_pipeline import NARVideoPipeline
from align.nar.video_tokenizer import VideoTokenizer
from align.scenes.grammar import COLORS, SHAPES
from align.scenes.motion import DIRECTIONS, MovingScene, describe_motion

ROOT = Path(__file__).parents[2]
OUT = ROOT / "align/embedded/nar-scenes-video"
TEXT_TOKENS = 12  # the longest prompt takes 11
TEXT_WIDTH = 128


def words_of_the_world() -> object:
    """A text tokenizer that knows every word of the grammar as one token."""
    rng = random.Random(0)
    scenes = [MovingScene(c, s, d) for c in COLORS for s in SHAPES for d in DIRECTIONS]
    prompts = [describe_motion(scene, rng) for scene in scenes for _ in range(8)]
    return learn_words(sorted(prompts), TEXT_TOKENS)


class TextToClip(nn.Module):
    """The two trained parts as one module."""

    def __init__(self, video_tokenizer: VideoTokenizer, words: object, args: argparse.Namespace):
        super().__init__()
        self.text_encoder = small_encoder(words, TEXT_WIDTH, TEXT_TOKENS)
        self.transformer = NARTransformer3DModel(
            grid_shape=video_tokenizer.grid_shape,
            vocab_size=video_tokenizer.codebook_size,
            width=args.width,
            num_layers=args.layers,
            num_heads=args.width // 64,
            ffn_width=args.width * 8 // 3,
            condition="text",
            condition_width=TEXT_WIDTH,
            num_condition_tokens=TEXT_TOKENS,
            use_condition_mask=False,
            cond_rope="identity",
            fusion=args.fusion,
            decoding=args.decoding,
            dropout=0.0,
        )

    def forward(self, ids: Tensor, text_ids: Tensor, drop: Tensor) -> Tensor:
        features = self.text_encoder(text_ids).last_hidden_state
        return self.transformer(ids, features, drop=drop)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--batch-size", type=int, default=32, help="per process")
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--text-learning-rate", type=float, default=1e-3)
    parser.add_argument("--width", type=int, default=192)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--fusion", default="mean", help="mean, scalar or gate")
    parser.add_argument("--decoding", default="wavefront", help="wavefront or raster")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, default=ROOT / "work/nar-scenes-video")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--video-tokenizer", type=Path, help="default: OUT/video_tokenizer")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    torch.set_num_threads(args.threads)
    if "WORLD_SIZE" in os.environ:
        dist.init_process_group("nccl" if args.device == "cuda" else "gloo")
    torch.manual_seed(args.seed)
    source = args.video_tokenizer or args.out / "video_tokenizer"
    video_tokenizer = VideoTokenizer.from_pretrained(source, dtype=torch.float32)
    video_tokenizer.eval().to(args.device)
    words = words_of_the_world()
    model = TextToClip(video_tokenizer, words, args).to(args.device)
    stream = f"{args.seed}-{rank()}"
    config = LoopConfig(
        args.work, minutes=args.minutes, learning_rate=args.learning_rate, threads=args.threads,
        seed=args.seed, decay_from=0.3, ema_decay=0.998,
    )  # fmt: skip

    def loss_fn(step: int) -> tuple[Tensor, dict[str, float]]:
        prompts, clips = draw_clips(stream, step, args.batch_size)
        ids = video_tokenizer.encode(clips.to(args.device))
        text_ids = words(
            prompts, padding="max_length", max_length=TEXT_TOKENS, return_tensors="pt"
        ).input_ids.to(args.device)
        generator = torch.Generator().manual_seed(hash_of(f"video-{stream}", step))
        drop = torch.rand(len(ids), generator=generator).to(args.device) < NULL_SHARE
        with autocast(args.device):
            logits = model(ids, text_ids, drop)
        return F.cross_entropy(logits.flatten(0, 1), ids.flatten()), {}

    def save(ema: TextToClip, step: int) -> None:
        shipped = VideoTokenizer.from_pretrained(source)
        shipped.register_to_config(_name_or_path="")  # else the folder of this machine is shipped
        pipe = NARVideoPipeline(
            ema.transformer.eval().to(torch.float16),
            shipped,
            NARScheduler(temperature=0.9, guidance_scale=1.5),
            words,
            ema.text_encoder.eval().to(torch.float16),
        )
        pipe.save_pretrained(args.out)
        write_card(args.out, pipe, args, step)

    optimizer = MuonAdamW(model, args.learning_rate, args.text_learning_rate)
    train(model, loss_fn, config, optimizer=optimizer, on_checkpoint=save)
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
