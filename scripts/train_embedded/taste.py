"""Train `scenes-taste`: how a picture looks, whatever its prompt.

    python scripts/train_embedded/taste.py

Regression on the exact looks of what was drawn, place by place: presence and colour of objects
(cross-entropy), their radius, gaps and colour distance, the ground's level and deviation (smooth
L1). An exact label says more than which of two pictures is better, and its gradient is local. Of a
batch of 64 a quarter are fresh pairs (taste_data.py), three eighths pairs that the generator
redrew, three eighths come from the pools of detector_data.py. Half of all are moved in their
pixels to where the score is wrong, either way (Madry et al. 2018); the truth stays.
"""

import argparse
import random
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from attacks import move
from detector_data import POOLS, Labelled, Pools, mirrored
from loop import LoopConfig, train
from taste_data import CENTER, FAR, Truth, fresh, redrawn, truth
from torch import Tensor

from align.models.precision import autocast
from align.rewards.scenes_layers import EMBEDDED, save_weights
from align.rewards.scenes_taste import CONFIG, NAME, Looks, ScenesTaste, score

ROOT = Path(__file__).parents[2]
OUT = EMBEDDED / "rewards" / NAME
SCALES = {"radius": 4.0, "gap": 4.0, "border": 4.0, "level": 10.0}
SMALL = {"off": 0.02, "uneven": 1.0}  # compared by logarithms, a value so small counting as none


def place_centers(side: int = 8) -> Tensor:
    """(x, y) px of the middles of the places [n, 2], row by row."""
    axis = 64 / side * (torch.arange(side) + 0.5)
    return torch.stack([axis.repeat(side), axis.repeat_interleave(side)], -1)


def looks_loss(looks: Looks, labels: Tensor, exact: Truth) -> tuple[Tensor, dict[str, float]]:
    """The loss over the batch, and its parts."""
    centers = place_centers().expand(len(labels), -1, -1)
    distance, owner = torch.cdist(centers, labels[..., 3:5].nan_to_num(1e4)).min(-1)
    near, far = distance < CENTER, distance > FAR
    share = near / near.sum(1, keepdim=True).clamp(min=1)

    def regress(said: Tensor, wanted: Tensor, name: str) -> Tensor:
        known = wanted.isfinite()
        wanted = wanted.nan_to_num(0)
        if name in SMALL:
            said, wanted = (x.div(SMALL[name]).log1p() for x in (said, wanted))
        else:
            said, wanted = said / SCALES[name], wanted / SCALES[name]
        error = F.smooth_l1_loss(said, wanted, reduction="none", beta=0.3)
        return error * known

    def of_objects(said: Tensor, wanted: Tensor, name: str) -> Tensor:
        return (regress(said, wanted.gather(1, owner), name) * share).sum(1).mean()

    presence = F.binary_cross_entropy_with_logits(looks.presence, near.float(), reduction="none")
    color = labels[..., 0].nan_to_num(-1).long().gather(1, owner)
    named = F.cross_entropy(looks.color.transpose(1, 2), color, reduction="none", ignore_index=-1)
    parts = {
        "presence": (presence * (near | far)).mean(1).mean() * 8,
        "color": (named * share).sum(1).mean(),
        "radius": 2 * of_objects(looks.radius, labels[..., 5], "radius"),
        "gap": of_objects(looks.gap, exact.gap, "gap"),
        "border": of_objects(looks.border, exact.border, "border"),
        "off": of_objects(looks.off, exact.off, "off"),
        "level": regress(looks.level, exact.level, "level").mean(),
        "uneven": regress(looks.uneven, exact.uneven, "uneven").mean(),
    }
    return torch.stack(list(parts.values())).sum(), {k: float(v.detach()) for k, v in parts.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=1300)
    parser.add_argument("--minutes", type=float, default=12, help="at most")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--learning-rate", type=float, default=3e-3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--redrawn", type=int, default=2048, help="pairs' pictures redrawn once")
    parser.add_argument("--adversarial", type=float, default=1.5, help="largest move of pixels, L2")
    parser.add_argument("--pools", type=Path, default=POOLS)
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--work", type=Path, default=ROOT / "work/taste")
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    model = ScenesTaste(**CONFIG)
    model.to(memory_format=torch.channels_last).train()  # pyright: ignore[reportCallIssue]
    pools, own = Pools(args.pools), redrawn_once(args)
    config = LoopConfig(
        args.work, steps=args.steps, minutes=args.minutes, learning_rate=args.learning_rate,
        ema_decay=0.995, threads=args.threads, seed=args.seed, weight_decay=0.02,
    )  # fmt: skip

    def batch(rng: random.Random) -> Labelled:
        eighth = args.batch_size // 8
        pick = torch.tensor([rng.randrange(len(own["images"])) for _ in range(3 * eighth)])
        again = Labelled(own["images"][pick] / 255, own["labels"][pick], own["drawn"][pick] / 255)
        parts = (fresh(rng, eighth), again, pools.draw(rng, 3 * eighth))
        return mirrored(Labelled.joined(*parts), rng)

    def attacked(data: Labelled, rng: random.Random) -> Labelled:
        """Half of the pictures moved to where the score rises or falls."""
        moving, still = data.part(slice(0, None, 2)), data.part(slice(1, None, 2))
        sign = torch.tensor([rng.choice((-1.0, 1.0)) for _ in moving.images])

        def loss_of(images: Tensor) -> Tensor:
            with autocast("cpu"):
                looks = model.looks(images)
            return sign * score(looks, ["a red circle"] * len(images))

        model.requires_grad_(False)
        generator = torch.Generator().manual_seed(rng.getrandbits(40))
        x = move(moving.images, lambda x: x, loss_of, args.adversarial, 1, generator)
        model.requires_grad_(True)
        moved = Labelled(x.clamp(0, 1).detach(), moving.labels, moving.drawn)
        return Labelled.joined(still, moved)

    def loss_fn(step: int):
        rng = random.Random(f"taste-{args.seed}-{step}")
        data = batch(rng)
        if args.adversarial:
            data = attacked(data, rng)
        x = data.images.contiguous(memory_format=torch.channels_last)
        with autocast("cpu"):
            looks = model.looks(x)
        return looks_loss(looks, data.labels, truth(data))

    def save(ema: ScenesTaste, step: int) -> None:
        training = {"steps": step, "minutes": args.minutes, "batch_size": args.batch_size,
                    "seed": args.seed, "redrawn": args.redrawn,
                    "adversarial": args.adversarial}  # fmt: skip
        save_weights(
            ema.state_dict(), {"reward": NAME, "model": CONFIG, "training": training}, args.out
        )

    train(model, loss_fn, config, on_checkpoint=save)


def redrawn_once(args: argparse.Namespace) -> dict[str, Tensor]:
    """The redrawn pairs of this seed, kept beside the checkpoint."""
    path = args.work / f"redrawn-{args.seed}-{args.redrawn}.pt"
    if not path.exists():
        start = time.monotonic()
        args.work.mkdir(parents=True, exist_ok=True)
        torch.save(redrawn(args.redrawn, args.seed), f"{path}.tmp")
        Path(f"{path}.tmp").rename(path)
        print(f"redrawn in {time.monotonic() - start:.0f} s", flush=True)
    return torch.load(path, weights_only=True)


if __name__ == "__main__":
    main()
