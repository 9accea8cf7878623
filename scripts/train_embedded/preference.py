"""Train `scenes-preference`: which picture holds more of the prompt, from noisy pairs.

    python scripts/train_embedded/preference.py --minutes 8                              # anew
    python scripts/train_embedded/preference.py --minutes 12 --continue --redrawn 4096   # on

Four pictures a prompt: a true one, one and two facts away, and another prompt's. Pairs are ranked
by the share of the prompt's assertions that the drawn scenes hold; one label in five is flipped, as
human raters disagree. Needs the text encoder of `scenes-clip` (scripts/train_embedded/clip.py).
"""

import argparse
import itertools
import random
from pathlib import Path

import torch
import torch.nn.functional as F
from imperfect import pictures, redrawn_pool
from loop import LoopConfig, train
from near_misses import random_scene, try_layout, vary
from torch import Tensor
from truth import assertion_holds

from align.language.assertions import scene_assertions
from align.models.precision import autocast
from align.rewards.scenes_clip import load_text_encoder, load_tokenizer
from align.rewards.scenes_layers import EMBEDDED, load_weights, save_weights
from align.rewards.scenes_preference import CONFIG, NAME, PreferenceHead, read_prompts
from align.scenes import describe
from align.scenes.grammar import Scene

ROOT = Path(__file__).parents[2]
OUT = EMBEDDED / "rewards" / NAME
PICTURES = 4
LABEL_NOISE = 0.2


def draw_rankings(rng: random.Random, count: int) -> tuple[list[Scene], list[Scene], Tensor]:
    """`count` prompts, `PICTURES` drawn scenes for each in turn, their shares (count, 4)."""
    said, drawn, shares = [], [], []
    while len(said) < count:
        scene = random_scene(rng)
        near = vary(scene, rng)
        placed = [try_layout(s, rng) for s in (scene, near, vary(near, rng), random_scene(rng))]
        if None in placed:
            continue
        said.append(scene)
        drawn += placed
        shares.append(shares_held(scene, placed))
    return said, drawn, torch.tensor(shares)


def shares_held(said: Scene, drawn: list[Scene]) -> list[float]:
    """The share of a prompt's assertions that each drawn scene holds."""
    facts = scene_assertions(said)
    return [sum(assertion_holds(a, scene) for a in facts) / len(facts) for scene in drawn]


def pool_rankings(pool, rng: random.Random, count: int) -> tuple[list[Scene], Tensor, Tensor]:
    """The same from pictures that the generator redrew: a prompt, its picture, two near misses and
    one of another prompt; images (4 count, 3, 64, 64) in [0, 1] in place of drawn scenes."""
    images, pool_said, pool_drawn = pool
    said, chosen, shares = [], [], []
    for start in rng.sample(range(0, len(images), 4), count):
        rows = [*rng.sample(range(start, start + 4), PICTURES - 1), rng.randrange(len(images))]
        said.append(pool_said[rows[0]])
        shares.append(shares_held(said[-1], [pool_drawn[row] for row in rows]))
        chosen += rows
    return said, images[chosen] / 255, torch.tensor(shares)


def noisy_pairs(shares: Tensor, rng: random.Random) -> Tensor:
    """Rows (prompt, better, worse) of all pairs of unequal share, a fifth of them turned round."""
    rows = []
    for prompt, values in enumerate(shares.tolist()):
        for i, j in itertools.combinations(range(PICTURES), 2):
            if values[i] != values[j]:
                better = values[i] > values[j]
                if rng.random() < LABEL_NOISE:
                    better = not better
                rows.append((prompt, i, j) if better else (prompt, j, i))
    return torch.tensor(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=8)
    parser.add_argument("--batch-size", type=int, default=32, help="prompts; four pictures each")
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--continue", dest="continued", action="store_true")
    parser.add_argument("--redrawn", type=int, default=0, help="pictures by the generator")
    parser.add_argument("--work", type=Path, default=ROOT / "work/preference")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    tokenizer, text_encoder = load_tokenizer(), load_text_encoder().to(args.device)
    head = PreferenceHead(**CONFIG)
    if args.continued:
        load_weights(head, NAME)
    head.requires_grad_(True).train().to(args.device)
    pool = redrawn_pool(args.redrawn, args.seed) if args.redrawn else None
    config = LoopConfig(
        args.work, minutes=args.minutes, learning_rate=args.learning_rate,
        threads=args.threads, seed=args.seed,
    )  # fmt: skip

    def loss_fn(step: int):
        rng = random.Random(f"preference-{args.seed}-{step}")
        said, drawn, shares = draw_rankings(rng, args.batch_size // (2 if pool else 1))
        x = pictures(drawn, rng, args.seed * 1_000_003 + step)
        if pool:
            more, images, more_shares = pool_rankings(pool, rng, args.batch_size - len(said))
            said, shares = said + more, torch.cat([shares, more_shares])
            x = torch.cat([x, images])
        x = x.to(args.device)
        prompt, better, worse = noisy_pairs(shares, rng).to(args.device).unbind(1)
        with autocast(args.device):
            with torch.no_grad():
                states, known = read_prompts(
                    tokenizer, text_encoder, [describe(s, rng) for s in said]
                )
            states = states.repeat_interleave(PICTURES, 0)
            scores = head(x, states, known.repeat_interleave(PICTURES, 0)).float()
        scores = scores.view(-1, PICTURES)
        loss = -F.logsigmoid(scores[prompt, better] - scores[prompt, worse]).mean()
        # agreement with the true order, not with the noisy labels
        gap = (shares[:, :, None] - shares[:, None, :]).to(args.device)
        said_gap = scores[:, :, None] - scores[:, None, :]
        right = (said_gap[gap > 0] > 0).float().mean()
        return loss, {"accuracy": float(right)}

    def save(ema: PreferenceHead, step: int) -> None:
        training = {"steps": step, "minutes": args.minutes, "batch_size": args.batch_size,
                    "seed": args.seed, "label_noise": LABEL_NOISE, "continued": args.continued,
                    "redrawn": args.redrawn}  # fmt: skip
        save_weights(ema.state_dict(), {"reward": NAME, "model": CONFIG, "training": training}, OUT)

    train(head, loss_fn, config, on_checkpoint=save)


if __name__ == "__main__":
    main()
