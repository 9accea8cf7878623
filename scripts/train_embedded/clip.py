"""Train `scenes-clip`: image and text encoders, contrastively.

    python scripts/train_embedded/clip.py --minutes 16                             # from scratch
    python scripts/train_embedded/clip.py --minutes 45 --continue --redrawn 8192   # on from there

A batch holds groups: a seen scene, three with one fact changed, and the first with an object too
many, which no prompt describes, so that every picture meets near misses of its prompt and every
prompt near misses of its picture. Symmetric InfoNCE; pairs that happen to be true are left out of
the denominators. `--redrawn` fills half of each batch
with pictures that the embedded generator redrew, for its own kind of faults. `--adversarial`
perturbs every picture against the loss before it learns from it (Madry et al. 2018), so that the
score's gradient by an image points to what a person sees, not to noise (Ganz & Elad 2023, CLIPAG).
Writes the image tower to align/embedded/rewards/scenes-clip and the text encoder, a plain
CLIPTextModel, below it.
"""

import argparse
import random
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from imperfect import pictures, redrawn_pool
from loop import LoopConfig, train
from near_misses import draw_intruded_groups
from torch import Tensor, nn
from transformers import CLIPTextModel
from truth import truth_matrix

from align.models.precision import autocast
from align.rewards.scenes_clip import (
    CONFIG,
    NAME,
    PREFIX,
    ImageTower,
    load_text_encoder,
    load_tokenizer,
    text_config,
    tokenize,
)
from align.rewards.scenes_layers import EMBEDDED, load_weights, save_weights
from align.scenes import describe

ROOT = Path(__file__).parents[2]
OUT = EMBEDDED / "rewards" / NAME


class DualEncoder(nn.Module):
    def __init__(self, tokenizer):
        super().__init__()
        self.image = ImageTower(**CONFIG)
        self.text = CLIPTextModel(text_config(tokenizer, CONFIG["width"]))

    def encode_text(self, ids: Tensor, end_id: int, chunks: int = 4) -> Tensor:
        """Text features; short prompts go together, so that little padding is computed."""
        lengths = (ids == end_id).int().argmax(1) + 1
        order = lengths.argsort()
        pooled = torch.cat(
            [self.text(ids[part, : lengths[part].max()]).pooler_output
             for part in order.chunk(chunks)]
        )  # fmt: skip
        return self.image.text_features(pooled[order.argsort()])


def contrastive_loss(logits: Tensor, true: Tensor, own: Tensor) -> Tensor:
    """Symmetric InfoNCE over (pictures, prompts); `own` is each prompt's picture. Other true pairs
    are masked out; pictures without a prompt are wrong answers only."""
    columns = torch.arange(len(own), device=own.device)
    others = true.clone()
    others[own, columns] = False
    logits = logits.masked_fill(others, -torch.inf)
    return (F.cross_entropy(logits[own], columns) + F.cross_entropy(logits.T, own)) / 2


def perturb(
    model: DualEncoder,
    x: Tensor,
    radius: float,
    loss_of: Callable[[Tensor], Tensor],
    steps: int,
    generator: torch.Generator,
) -> Tensor:
    """Pictures [n, 3, h, w], each moved to where the loss is higher, by up to `radius` (L2).

    How far differs, so that unmoved pictures stay among them.
    """
    radii = radius * torch.rand(len(x), 1, 1, 1, generator=generator).to(x)
    moved = torch.randn(x.shape, generator=generator).to(x)
    moved *= 0.5 * radii / norms(moved)
    model.requires_grad_(False)
    for _ in range(steps):
        moved.requires_grad_(True)
        (gradient,) = torch.autograd.grad(loss_of(model.image(x + moved)), moved)
        moved = moved.detach() + 1.5 / steps * radii * gradient / norms(gradient)
        moved *= (radii / norms(moved)).clamp(max=1)
        moved = (x + moved).clamp(0, 1) - x
    model.requires_grad_(True)
    return x + moved


def norms(x: Tensor) -> Tensor:
    return x.flatten(1).norm(dim=1).clamp(min=1e-12).view(-1, 1, 1, 1)


def save(model: DualEncoder, step: int, args: argparse.Namespace) -> None:
    training = {"steps": step, "minutes": args.minutes, "batch_size": args.batch_size,
                "seed": args.seed, "continued": args.continued,
                "redrawn": args.redrawn, "adversarial": args.adversarial}  # fmt: skip
    image = {"reward": NAME, "model": CONFIG, "training": training}
    save_weights(model.image.state_dict(), image, args.out)
    weights = {PREFIX + k.removeprefix(PREFIX): v for k, v in model.text.state_dict().items()}
    # stored as fp16, used as float32, which both names of the entry tell transformers
    config = {**model.text.config.to_diff_dict(), "architectures": ["CLIPTextModel"],
              "dtype": "float32", "torch_dtype": "float32"}  # fmt: skip
    save_weights(weights, config, args.out / "text_encoder")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=12)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--continue", dest="continued", action="store_true")
    parser.add_argument("--redrawn", type=int, default=0, help="pictures by the generator")
    parser.add_argument("--adversarial", type=float, default=0.0, help="largest L2 perturbation")
    parser.add_argument("--attack-steps", type=int, default=2)
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--work", type=Path, default=ROOT / "work/clip")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    tokenizer = load_tokenizer()
    model = DualEncoder(tokenizer)
    if args.continued:
        load_weights(model.image, NAME)
        model.text.load_state_dict(load_text_encoder().state_dict())
        model.requires_grad_(True)
    model.train().to(args.device)
    pool = redrawn_pool(args.redrawn, args.seed, draw_intruded_groups) if args.redrawn else None
    config = LoopConfig(
        args.work, minutes=args.minutes, learning_rate=args.learning_rate,
        threads=args.threads, seed=args.seed, weight_decay=0.05,
    )  # fmt: skip

    def loss_fn(step: int):
        rng = random.Random(f"clip-{args.seed}-{step}")
        size = args.batch_size // 2 if pool else args.batch_size
        said, drawn = draw_intruded_groups(rng, size)
        x = pictures(drawn, rng, args.seed * 1_000_003 + step)
        if pool:
            images, pool_said, pool_drawn = pool
            start = rng.randrange(len(images) - size)  # neighbours are near misses of each other
            x = torch.cat([x, images[start : start + size] / 255])
            said += pool_said[start : start + size]
            drawn += pool_drawn[start : start + size]
        own = torch.tensor([i for i, s in enumerate(said) if s is not None], device=args.device)
        said = [s for s in said if s is not None]
        x = x.to(args.device)
        ids = tokenize(tokenizer, [describe(s, rng) for s in said]).to(args.device)
        true = truth_matrix(said, drawn).to(args.device)
        scale = model.image.log_scale.exp().clamp(max=100)
        with autocast(args.device):
            text = model.encode_text(ids, tokenizer.eos_token_id)
        if args.adversarial:
            target = (scale * text).detach().float()

            def loss_of(image: Tensor) -> Tensor:
                return contrastive_loss(image.float() @ target.T, true, own)

            generator = torch.Generator().manual_seed(args.seed * 1_000_003 + step)
            x = perturb(model, x, args.adversarial, loss_of, args.attack_steps, generator)
        with autocast(args.device):
            image = model.image(x)
        logits = scale * image.float() @ text.float().T
        loss = contrastive_loss(logits, true, own)
        hits = (logits.argmax(0) == own).float()
        return loss, {"accuracy": float(hits.mean()), "scale": float(scale.detach())}

    train(model, loss_fn, config, on_checkpoint=lambda ema, step: save(ema, step, args))


if __name__ == "__main__":
    main()
