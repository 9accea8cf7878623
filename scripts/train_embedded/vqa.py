"""Train `scenes-vqa`: yes/no answers to assertions about scenes.

    python scripts/train_embedded/vqa.py --minutes 13                             # from scratch
    python scripts/train_embedded/vqa.py --minutes 20 --continue --redrawn 4096   # on from there

Each picture of a seen scene is asked about its own prompt, about near misses and about another
picture of the batch, as many questions with the answer yes as with no. Answers come from the scene.
The shipped weights started from the image trunk of a counting network that is no longer kept; from
random ones a pilot was still at 66 % after 260 steps.
"""

import argparse
import random
from pathlib import Path

import torch
import torch.nn.functional as F
from imperfect import pictures, redrawn_pool
from loop import LoopConfig, train
from near_misses import draw_groups, vary
from truth import assertion_holds

from align.language.assertions import scene_assertions
from align.models.precision import autocast
from align.rewards.scenes_layers import EMBEDDED, load_weights, save_weights
from align.rewards.scenes_vqa import CONFIG, NAME, ScenesVqa, question_ids
from align.scenes.grammar import Scene

ROOT = Path(__file__).parents[2]
OUT = EMBEDDED / "rewards" / NAME
QUESTIONS = 8
SMOOTHING = 0.02  # keeps log p(yes) above about -4, so that no single question rules a score


def ask(said: Scene, drawn: Scene, stranger: Scene, rng: random.Random) -> list[tuple[str, bool]]:
    """`QUESTIONS` questions about a drawn scene with their answers, yes and no in balance."""
    asked = list(scene_assertions(said))
    for _ in range(3):
        asked += scene_assertions(vary(said, rng))
    asked += scene_assertions(stranger)
    answers = {a.question: assertion_holds(a, drawn) for a in asked}
    yes = [q for q, answer in answers.items() if answer]
    no = [q for q, answer in answers.items() if not answer]
    # relations, counts and textures are fewer than plain objects and harder
    weight = {q: 1.0 + 2.0 * q.startswith(("Is the ", "Are ", "Is there exactly")) for q in answers}
    chosen = []
    for pool in (yes or no, no or yes):  # now and then all answers are alike
        for _ in range(QUESTIONS // 2):
            question = rng.choices(pool, [weight[q] for q in pool])[0]
            chosen.append((question, answers[question]))
    return chosen


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=8)
    parser.add_argument("--batch-size", type=int, default=96)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--continue", dest="continued", action="store_true")
    parser.add_argument("--redrawn", type=int, default=0, help="pictures by the generator")
    parser.add_argument("--work", type=Path, default=ROOT / "work/vqa")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    model = ScenesVqa(**CONFIG)
    if args.continued:
        load_weights(model, NAME)
    model.requires_grad_(True).train().to(args.device)
    pool = redrawn_pool(args.redrawn, args.seed) if args.redrawn else None
    config = LoopConfig(
        args.work, minutes=args.minutes, learning_rate=args.learning_rate,
        threads=args.threads, seed=args.seed,
    )  # fmt: skip

    def loss_fn(step: int):
        rng = random.Random(f"vqa-{args.seed}-{step}")
        said, drawn = draw_groups(rng, args.batch_size // (2 if pool else 1), group=2)
        x = pictures(drawn, rng, args.seed * 1_000_003 + step)
        if pool:
            images, pool_said, pool_drawn = pool
            chosen = rng.sample(range(len(images)), args.batch_size - len(said))
            x = torch.cat([x, images[chosen] / 255])
            said += [pool_said[i] for i in chosen]
            drawn += [pool_drawn[i] for i in chosen]
        x = x.to(args.device)
        asked = [ask(said[i], drawn[i], said[i - 2], rng) for i in range(len(said))]
        flat = [pair for questions in asked for pair in questions]
        ids = question_ids([question for question, _ in flat]).to(args.device)
        answers = torch.tensor([float(answer) for _, answer in flat], device=args.device)
        owner = torch.arange(len(said), device=args.device).repeat_interleave(QUESTIONS)
        with autocast(args.device):
            logits = model.logits(x, ids[:, : (ids > 0).sum(1).max()], owner).float()
        target = answers * (1 - 2 * SMOOTHING) + SMOOTHING
        loss = F.binary_cross_entropy_with_logits(logits, target)
        right = ((logits > 0) == (answers > 0)).float().cpu()
        kinds = {"relation": "Is the ", "count": "Are there", "texture": "Are all"}
        groups = {
            name: torch.tensor([q.startswith(start) for q, _ in flat])
            for name, start in kinds.items()
        }
        numbers = {name: float(right[m].mean()) for name, m in groups.items() if m.any()}
        return loss, {"accuracy": float(right.mean()), **numbers}

    def save(ema: ScenesVqa, step: int) -> None:
        training = {"steps": step, "minutes": args.minutes, "batch_size": args.batch_size,
                    "seed": args.seed, "continued": args.continued,
                    "redrawn": args.redrawn}  # fmt: skip
        save_weights(ema.state_dict(), {"reward": NAME, "model": CONFIG, "training": training}, OUT)

    train(model, loss_fn, config, on_checkpoint=save)


if __name__ == "__main__":
    main()
