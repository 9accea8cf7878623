"""How right `embedded/nar-scenes` is, by the verifier, and how right its tokenizer lets it be.

    python scripts/bench/nar_scenes.py                             # 10 prompts a category
    python scripts/bench/nar_scenes.py --per-category 60 --heldout --guidance 2 3 4
    python scripts/bench/nar_scenes.py --best-of 8 --reward scenes-vqa=1

Prints the share of exact pictures per category for seen (and held-out) prompts, and the time per
picture at the batch size.
"""

import argparse
import json
import time

import numpy as np
import torch

from align.commands.nar import draw, load_nar_pipeline
from align.rewards import load_reward
from align.scenes import CATEGORIES, prompt_set, sample
from align.scenes.dataset import prompt_categories
from align.scenes.verifier import verify


def pick(name: str, per_category: int) -> dict[str, list[str]]:
    """The first prompts of every category of a built-in set."""
    prompts = prompt_set(name)
    groups: dict[str, list[str]] = {category: [] for category in CATEGORIES}
    for prompt, category in zip(prompts, prompt_categories(prompts), strict=True):
        if len(groups[category]) < per_category:
            groups[category].append(prompt)
    return groups


def judge_tokenizer(pipe, per_category: int) -> float:
    """Exact share of reconstructed true pictures of held-out combinations."""
    pairs = [sample(c, seed, heldout=True) for c in CATEGORIES for seed in range(per_category)]
    images = torch.from_numpy(np.stack([image for _, image in pairs])).permute(0, 3, 1, 2) / 255
    rebuilt = torch.cat([
        pipe.image_tokenizer.decode(pipe.image_tokenizer.encode(part)) for part in images.split(16)
    ])  # fmt: skip
    exact, _ = verify([prompt for prompt, _ in pairs], rebuilt)
    return float(exact.float().mean())


def judge(pipe, groups: dict[str, list[str]], args, reward, **settings) -> dict[str, float]:
    """Exact share per category, their mean, and seconds per picture."""
    shares, seconds, count = {}, 0.0, 0
    for category, prompts in groups.items():
        right = []
        for start in range(0, len(prompts), args.batch_size):
            part = prompts[start : start + args.batch_size]
            seeds = [args.seed + start + row for row in range(len(part))]
            began = time.perf_counter()
            drawn = draw(pipe, part, seeds, reward=reward, best_of=args.best_of, **settings)
            seconds += time.perf_counter() - began
            exact, _ = verify(part, drawn.images.cpu())
            right += exact.tolist()
        count += len(prompts)
        if prompts:
            shares[category] = sum(right) / len(right)
    shares["mean"] = sum(shares.values()) / len(shares)
    return shares | {"seconds_per_picture": seconds / count}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="embedded/nar-scenes")
    parser.add_argument("--per-category", type=int, default=10)
    parser.add_argument("--heldout", action="store_true", help="also scenes-heldout-a")
    parser.add_argument("--guidance", type=float, nargs="+", default=[2.5])
    parser.add_argument("--temperature", type=float, nargs="+", default=[0.9])
    parser.add_argument("--best-of", type=int, default=1)
    parser.add_argument("--reward")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device")
    args = parser.parse_args()
    reward = load_reward(args.reward, args.device) if args.reward else None
    pipe = load_nar_pipeline(args.model, args.device)
    print(f"tokenizer, held-out pictures rebuilt: {judge_tokenizer(pipe, 20):.3f} exact")
    for name in ("scenes", "scenes-heldout-a") if args.heldout else ("scenes",):
        groups = pick(name, args.per_category)
        for guidance in args.guidance:
            for temperature in args.temperature:
                settings = {"guidance_scale": guidance, "temperature": temperature}
                shares = judge(pipe, groups, args, reward, **settings)
                rounded = {key: round(value, 3) for key, value in shares.items()}
                print(json.dumps({"prompts": name, **settings, **rounded}), flush=True)


if __name__ == "__main__":
    main()
