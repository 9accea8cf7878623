"""Train `scenes-detector`: where objects are, and what they are.

    python scripts/train_embedded/detector_data.py --minutes 14   # once: redrawn pictures
    python scripts/train_embedded/detector.py --minutes 50

Per place of a 16x16 grid: presence of an object's centre (cross-entropy), and at the places about
a centre its colour and shape ("none" is a class), texture, offset, radius (smooth L1), and which of
two overlapping objects is in front. Half of a batch are fresh renders, half come from the pools.
"""

import argparse
import random
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from detector_data import POOLS, Labelled, Pools, fresh, mirrored
from jaxtyping import Bool, Float, Int
from loop import LoopConfig, train
from torch import Tensor

from align.precision import autocast
from align.rewards.scenes_detector import CONFIG, NAME, Maps, ScenesDetector, cell_centers
from align.rewards.scenes_layers import EMBEDDED, load_weights, save_weights

ROOT = Path(__file__).parents[2]
OUT = EMBEDDED / "rewards" / NAME
NEAR = 3.0  # px from a centre within which a place has to say that it is there
ABOUT = 4.5  # px within which a place may say so, and has to say what it is


@dataclass(frozen=True)
class Targets:
    """Which object (index into a picture's rows) each place belongs to, and which places count."""

    owner: Int[Tensor, "b n"]
    about: Bool[Tensor, "b n"]
    near: Bool[Tensor, "b n"]


def assign(labels: Float[Tensor, "b m f"], side: int = 16) -> Targets:
    """Each place's nearest object, and whether it is near it."""
    centers = cell_centers(side, side, labels.device).float()
    distance = torch.cdist(centers.expand(len(labels), -1, -1), labels[..., 3:5].nan_to_num(1e4))
    nearest, owner = distance.min(-1)
    return Targets(owner, nearest < ABOUT, nearest < NEAR)


def detection_loss(maps: Maps, labels: Float[Tensor, "b m f"]) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of each picture [b], and its parts as means over the batch."""
    targets = assign(labels)
    counted = targets.near | ~targets.about
    objects = labels[..., 0].isfinite().sum(1).clamp(min=1)
    presence = F.binary_cross_entropy_with_logits(
        maps.presence, targets.near.float(), reduction="none"
    )
    rows = labels.gather(1, targets.owner[..., None].expand(-1, -1, labels.shape[-1])).nan_to_num(0)
    share = targets.about / targets.about.sum(1, keepdim=True).clamp(min=1)

    def mean(values: Tensor) -> Tensor:  # [b, n] to [b], over the places about centres
        return (values * share).sum(1)

    def classes(logits: Tensor, column: int) -> Tensor:
        return F.cross_entropy(
            logits.transpose(1, 2), rows[..., column].long(), reduction="none", ignore_index=-1
        )

    parts = {
        "presence": (presence * counted).sum(1) / objects,
        "color": mean(classes(maps.color, 0)),
        "shape": mean(classes(maps.shape, 1)),
        "texture": mean(classes(maps.texture, 2)),
        "center": mean(F.smooth_l1_loss(maps.center, rows[..., 3:5], reduction="none").sum(-1)),
        "radius": mean(F.smooth_l1_loss(maps.radius, rows[..., 5], reduction="none")),
        "depth": depth_loss(maps, labels),
    }
    weights = {"center": 0.25, "radius": 0.25}
    total = sum(weights.get(name, 1.0) * value for name, value in parts.items())
    assert isinstance(total, Tensor)
    return total, {name: value.detach().mean() for name, value in parts.items()}


def depth_loss(maps: Maps, labels: Float[Tensor, "b m f"]) -> Float[Tensor, " b"]:
    """Which of two overlapping objects is nearer, by the places nearest their centres."""
    x, y, r, depth = (labels[..., i] for i in (3, 4, 5, 6))
    column, row = ((v.nan_to_num(0) / 4).long().clamp(0, 15) for v in (x, y))
    said = maps.depth.gather(1, row * 16 + column)
    apart = torch.hypot(x[:, :, None] - x[:, None], y[:, :, None] - y[:, None])
    pair = (apart < 0.85 * (r[:, :, None] + r[:, None])) & (depth[:, :, None] > depth[:, None])
    wrong = F.softplus(said[:, None] - said[:, :, None])
    return torch.where(pair, wrong, 0.0).sum((1, 2)) / pair.sum((1, 2)).clamp(min=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=50)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--continue", dest="continued", action="store_true")
    parser.add_argument("--pools", type=Path, default=POOLS)
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--work", type=Path, default=ROOT / "work/detector")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    model = ScenesDetector(**CONFIG)
    if args.continued:
        load_weights(model, NAME)
        model.requires_grad_(True)
    model.to(args.device, memory_format=torch.channels_last).train()
    pools = Pools(args.pools)
    config = LoopConfig(
        args.work, minutes=args.minutes, learning_rate=args.learning_rate, ema_decay=0.998,
        threads=args.threads, seed=args.seed, weight_decay=0.02,
    )  # fmt: skip

    def batch(step: int) -> Labelled:
        rng = random.Random(f"detector-{args.seed}-{step}")
        half = args.batch_size // 2
        parts = (fresh(rng, half), pools.draw(rng, args.batch_size - half))
        data = Labelled(torch.cat([p.images for p in parts]), torch.cat([p.labels for p in parts]))
        return mirrored(data, rng)

    def loss_fn(step: int):
        data = batch(step)
        x = data.images.to(args.device, memory_format=torch.channels_last)
        with autocast(args.device):
            maps = model.maps(x)
        loss, parts = detection_loss(maps, data.labels.to(args.device))
        return loss.mean(), {name: float(value) for name, value in parts.items()}

    def save(ema: ScenesDetector, step: int) -> None:
        training = {"steps": step, "minutes": args.minutes, "batch_size": args.batch_size,
                    "seed": args.seed}  # fmt: skip
        save_weights(
            ema.state_dict(), {"reward": NAME, "model": CONFIG, "training": training}, args.out
        )

    train(model, loss_fn, config, on_checkpoint=save)


if __name__ == "__main__":
    main()
