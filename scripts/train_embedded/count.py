"""Train `scenes-count`: where objects are, of which colour and shape, and how many.

    python scripts/train_embedded/count.py --minutes 6

Per place of an 8x8 grid: binary cross-entropy for an object's centre, cross-entropy for its colour
and shape; and the likelihood of the true numbers, which teaches a centre on the border of two
places to be counted once. Labels come from the drawn scene.
"""

import argparse
import random
from collections import Counter
from pathlib import Path

import torch
import torch.nn.functional as F
from imperfect import pictures
from loop import LoopConfig, train
from near_misses import draw_groups
from torch import Tensor

from align.precision import autocast
from align.rewards.scenes_count import CONFIG, NAME, ScenesCount, log_likelihood
from align.rewards.scenes_layers import EMBEDDED, save_weights
from align.scenes.grammar import COLORS, SHAPES, Scene

ROOT = Path(__file__).parents[2]
OUT = EMBEDDED / "rewards" / NAME
CELL = 8  # px


def place_labels(drawn: list[Scene]) -> tuple[Tensor, Tensor]:
    """Colour and shape index (n, 64) at each object's centre, -1 where there is none."""
    color = torch.full((len(drawn), 64), -1)
    shape = torch.full((len(drawn), 64), -1)
    for i, scene in enumerate(drawn):
        for o in sorted(scene.objects, key=lambda o: o.depth):
            place = int(o.y // CELL) * 8 + int(o.x // CELL)
            color[i, place] = list(COLORS).index(o.color)
            shape[i, place] = SHAPES.index(o.shape)
    return color, shape


def true_counts(drawn: list[Scene]) -> tuple[Tensor, Tensor]:
    """Rows (colour, shape, number) of what is there, -1 -1 for all; and the picture of each."""
    rows, owner = [], []
    for i, scene in enumerate(drawn):
        sorts = Counter((list(COLORS).index(o.color), SHAPES.index(o.shape)) for o in scene.objects)
        found = [(*sort, n) for sort, n in sorts.items()] + [(-1, -1, len(scene.objects))]
        rows += found
        owner += [i] * len(found)
    return torch.tensor(rows), torch.tensor(owner)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=6)
    parser.add_argument("--batch-size", type=int, default=96)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, default=ROOT / "work/count")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    model = ScenesCount(**CONFIG).to(args.device)
    config = LoopConfig(
        args.work, minutes=args.minutes, learning_rate=args.learning_rate,
        threads=args.threads, seed=args.seed,
    )  # fmt: skip

    def loss_fn(step: int):
        rng = random.Random(f"count-{args.seed}-{step}")
        _, drawn = draw_groups(rng, args.batch_size, group=2)
        x = pictures(drawn, rng, args.seed * 1_000_003 + step).to(args.device)
        color, shape = (labels.to(args.device) for labels in place_labels(drawn))
        counts, owner = (labels.to(args.device) for labels in true_counts(drawn))
        with autocast(args.device):
            maps = model.maps(x)
        present, color_logits, shape_logits = maps = [logits.float() for logits in maps]
        there = color >= 0
        where = F.binary_cross_entropy_with_logits(present, there.float())
        what = F.cross_entropy(color_logits[there], color[there])
        what = what + F.cross_entropy(shape_logits[there], shape[there])
        likelihood = log_likelihood(*maps, counts, owner)
        right = (shape_logits[there].argmax(-1) == shape[there]).float().mean()
        loss = 8 * where + what - likelihood.mean()
        return loss, {"likelihood": float(likelihood.detach().exp().mean()), "shape": float(right)}

    def save(ema: ScenesCount, step: int) -> None:
        training = {"steps": step, "minutes": args.minutes, "batch_size": args.batch_size,
                    "seed": args.seed}  # fmt: skip
        save_weights(ema.state_dict(), {"reward": NAME, "model": CONFIG, "training": training}, OUT)

    train(model, loss_fn, config, on_checkpoint=save)


if __name__ == "__main__":
    main()
