"""Train `scenes-detector`: where objects are, and what they are.

    python scripts/train_embedded/detector_data.py --minutes 14   # once: redrawn pictures
    python scripts/train_embedded/detector.py --minutes 50
    python scripts/train_embedded/detector.py --minutes 50 --continue A --adversarial 2
    python scripts/train_embedded/detector.py --average A B      # a soup of two pieces' weights

Per place of a 16x16 grid: presence of an object's centre (cross-entropy), and at the places about
a centre its colour and shape ("none" is a class), texture, offset, radius (smooth L1), and which of
two overlapping objects is in front. Half of a batch are fresh renders, half come from the pools.
With `--adversarial` half of all are moved in their pixels towards being misread, and a quarter more
are pictures moved in latents or noise, which serve several batches (attacks.py).
"""

import argparse
import itertools
import json
import random
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from attacks import Movers, moved_pixels
from detector_data import FIELDS, MOST, POOLS, Labelled, Pools, fresh, mirrored
from jaxtyping import Bool, Float, Int
from loop import LoopConfig, train
from safetensors.torch import load_file
from torch import Tensor

from align.models.precision import autocast
from align.rewards.scenes_detector import CONFIG, NAME, ScenesDetector
from align.rewards.scenes_layers import EMBEDDED, save_weights
from align.rewards.scenes_score import Maps, cell_centers

ROOT = Path(__file__).parents[2]
OUT = EMBEDDED / "rewards" / NAME
NEAR = 3.0  # px from a centre within which a place has to say that it is there
REPLAY = 512  # pictures moved in latents or noise that are kept for later batches
SAME, DIFFERENT = 0.1, 0.18  # of 1: what may vary on one surface, what is seen as another colour
SHIFT = 2  # px
FLAW_AREA = 5  # px of the 6x6 about a place
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


def detection_loss(
    maps: Maps, labels: Float[Tensor, "b m f"], flaws: tuple[Tensor, Tensor]
) -> tuple[Tensor, dict[str, Tensor]]:
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
        "flaw": flaw_loss(maps, *flaws),
    }
    weights = {"center": 0.25, "radius": 0.25}
    total = sum(weights.get(name, 1.0) * value for name, value in parts.items())
    assert isinstance(total, Tensor)
    return total, {name: value.detach().mean() for name, value in parts.items()}


def flaw_targets(images: Tensor, drawn: Tensor) -> tuple[Tensor, Tensor]:
    """Which places [b, 256] hold a flaw, and which of them tell: a flaw is an area that differs
    from what was drawn, wherever within `SHIFT` px that may have gone."""
    around = F.pad(drawn, (SHIFT,) * 4, mode="replicate")
    off = torch.full_like(images[:, :1], torch.inf)
    for dy, dx in itertools.product(range(2 * SHIFT + 1), repeat=2):
        other = (images - around[..., dy : dy + 64, dx : dx + 64]).abs()
        off = torch.minimum(off, F.avg_pool2d(other, 3, 1, 1).amax(1, keepdim=True))
    # where nothing is known, `off` is NaN and both comparisons are false
    wrong, right = ((mask).float() for mask in (off > DIFFERENT, off < SAME))
    area, clear = (36 * F.avg_pool2d(F.pad(m, (1,) * 4), 6, stride=4) for m in (wrong, right))
    flaw, fine = area >= FLAW_AREA, (area < 1) & (clear >= 18)
    return flaw.flatten(1), (flaw | fine).flatten(1)


def flaw_loss(maps: Maps, flaw: Tensor, known: Tensor) -> Float[Tensor, " b"]:
    """Cross-entropy of flaws over the places that tell, 16 of them counting as one object."""
    each = F.binary_cross_entropy_with_logits(maps.flaw, flaw.float(), reduction="none")
    return (each * known).sum(1) / 16


def depth_loss(maps: Maps, labels: Float[Tensor, "b m f"]) -> Float[Tensor, " b"]:
    """Which of two overlapping objects is nearer, by the places nearest their centres."""
    x, y, r, depth = (labels[..., i] for i in (3, 4, 5, 6))
    column, row = ((v.nan_to_num(0) / 4).long().clamp(0, 15) for v in (x, y))
    said = maps.depth.gather(1, row * 16 + column)
    apart = torch.hypot(x[:, :, None] - x[:, None], y[:, :, None] - y[:, None])
    pair = (apart < 0.85 * (r[:, :, None] + r[:, None])) & (depth[:, :, None] > depth[:, None])
    wrong = F.softplus(said[:, None] - said[:, :, None])
    return torch.where(pair, wrong, 0.0).sum((1, 2)) / pair.sum((1, 2)).clamp(min=1)


def average(folders: list[Path], out: Path) -> None:
    """The mean of the weights of pieces that started from one another (2203.05482)."""
    pieces = [load_file(folder / "model.safetensors") for folder in folders]
    mean = {key: sum(piece[key].float() for piece in pieces) / len(pieces) for key in pieces[0]}
    training = [json.loads((f / "config.json").read_text())["training"] for f in folders]
    save_weights(mean, {"reward": NAME, "model": CONFIG, "training": training}, out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=50)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--continue", dest="continued", type=Path, help="weights to start from")
    parser.add_argument("--adversarial", type=float, default=0.0, help="largest move of pixels, L2")
    parser.add_argument("--latents", type=float, default=0.15, help="of latents, share of length")
    parser.add_argument("--noise", type=float, default=0.25, help="of turbo's noise, likewise")
    parser.add_argument("--attack-steps", type=int, default=2)
    parser.add_argument("--pools", type=Path, default=POOLS)
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--work", type=Path, default=ROOT / "work/detector")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--average", nargs="+", type=Path, help="write these weights' mean alone")
    args = parser.parse_args()
    if args.average:
        average(args.average, args.out)
        return
    torch.manual_seed(args.seed)
    model = ScenesDetector(**CONFIG)
    if args.continued:
        weights = load_file(args.continued / "model.safetensors")
        own = model.state_dict()
        for key, value in weights.items():  # a field more may have come since
            own[key][: len(value)] = value.float()
        model.load_state_dict(own)
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
        return mirrored(Labelled.joined(*parts), rng)

    movers = Movers.load() if args.adversarial else None
    nothing = torch.zeros(0, 3, 64, 64)
    moved = Labelled(nothing, torch.zeros(0, MOST, FIELDS), nothing)

    def picture_losses(images: Tensor, labels: Tensor) -> Tensor:
        with autocast(args.device):
            maps = model.maps(images)
        none = torch.zeros_like(maps.flaw)  # a flaw is to be overlooked
        return detection_loss(maps, labels, (none, none + 0.5))[0]

    def attacked(step: int, data: Labelled) -> Labelled:
        """Half of the batch moved in pixels; every fourth step new pictures moved in latents or
        noise, of which some join each batch."""
        nonlocal moved
        rng = random.Random(f"attack-{args.seed}-{step}")
        model.requires_grad_(False)
        half = len(data.images) // 2
        pixels = moved_pixels(
            data.part(slice(0, None, 2)), picture_losses, args.adversarial, args.attack_steps, rng
        )
        if step % 4 == 0 or len(moved.images) == 0:
            radii = {"latents": args.latents, "noise": args.noise}
            fresh_moved = movers(picture_losses, half // 2, radii, args.attack_steps, rng)
            moved = Labelled.joined(moved, fresh_moved).part(slice(-REPLAY, None))
        model.requires_grad_(True)
        index = torch.tensor([rng.randrange(len(moved.images)) for _ in range(half // 2)])
        again = mirrored(moved.part(index), rng)
        return Labelled.joined(data.part(slice(1, None, 2)), pixels, again)

    def loss_fn(step: int):
        data = batch(step)
        if args.adversarial:
            data = attacked(step, data)
        x = data.images.to(args.device, memory_format=torch.channels_last)
        with autocast(args.device):
            maps = model.maps(x)
        flaws = flaw_targets(x, data.drawn.to(args.device))
        loss, parts = detection_loss(maps, data.labels.to(args.device), flaws)
        return loss.mean(), {name: float(value) for name, value in parts.items()}

    def save(ema: ScenesDetector, step: int) -> None:
        training = {"steps": step, "minutes": args.minutes, "batch_size": args.batch_size,
                    "seed": args.seed, "adversarial": args.adversarial,
                    "latents": args.latents, "noise": args.noise,
                    "continued": bool(args.continued)}  # fmt: skip
        save_weights(
            ema.state_dict(), {"reward": NAME, "model": CONFIG, "training": training}, args.out
        )

    train(model, loss_fn, config, on_checkpoint=save)


if __name__ == "__main__":
    main()
