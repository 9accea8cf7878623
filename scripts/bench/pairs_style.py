"""Do pairs of pictures teach `embedded/scenes` a style? Large objects, chosen over small ones.

    python scripts/bench/pairs_style.py --out runs/pairs-style

200 pairs of renders of one scene, in the rejected one every object two thirds as large, prompts of
half a. `align train --pairs` learns from them for `--minutes`, by every method of `--methods`. Then
pictures of half b's prompts from the same noises with and without the LoRA: the share of pictures
whose mean radius, by the verifier's reader, lies above the middle between chosen and rejected ones;
paired differences with 95 % intervals over prompts.
"""

import argparse
import csv
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from taste import chosen_prompts, draw, interval, measure

from align.runs.files import write_json
from align.scenes import layout, measure_taste, parse, prompt_set, render

PAIRS = 200
SMALLER = 0.67
SETTINGS = {
    "dpo": ["--beta", "100", "--kl-weight", "1"],
    "sft": [],
}


def make_pairs(folder: Path) -> float:
    """Write the pictures and pairs.csv; the mean radius that lies in the middle."""
    rng = random.Random(0)
    folder.mkdir(parents=True, exist_ok=True)
    rows, radii = [], []
    for n, prompt in enumerate(rng.sample(prompt_set("scenes-heldout-a"), PAIRS)):
        layouts = [layout(parse(prompt), rng) for _ in range(8)]
        large = max(layouts, key=lambda scene: sum(thing.r for thing in scene.objects))
        small = replace(
            large, objects=tuple(replace(one, r=SMALLER * one.r) for one in large.objects)
        )
        pair = [render(large), render(small)]
        names = [f"{n}-{kind}.png" for kind in ("chosen", "rejected")]
        for name, picture in zip(names, pair, strict=True):
            Image.fromarray(picture).save(folder / name)
        rows.append((prompt, *names))
        radii.append([read_radius(picture) for picture in pair])
    with (folder / "pairs.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("prompt", "chosen", "rejected"), *rows])
    chosen, rejected = np.nanmean(radii, 0)
    print(f"mean radius of chosen pictures {chosen:.1f} px, of rejected ones {rejected:.1f}")
    return float(chosen + rejected) / 2


def read_radius(picture: np.ndarray) -> float:
    image = torch.from_numpy(picture.copy()).permute(2, 0, 1)[None] / 255
    return float(measure_taste(image).radius[0])


def train(args: argparse.Namespace, method: str, seed: int) -> Path:
    out = args.out / f"{method}-{seed}"
    command = [
        "align", "train", "--model", "embedded/scenes", "--method", method,
        "--pairs", str(args.out / "pairs" / "pairs.csv"), "--seed", str(seed),
        "--max-minutes", str(args.minutes), "--steps", str(args.updates), "--batch-size", "16",
        "--pair-timesteps", "1", "--learning-rate", str(args.learning_rate), "--warmup-steps", "5",
        "--lora-rank", "16", "--no-checkpointing", "--sample-every", "0", "--tracker", "none",
        "--out", str(out), "--overwrite", *SETTINGS[method],
    ]  # fmt: skip
    subprocess.run([sys.executable, "-m", *command], check=True)
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("work/pairs-style"))
    parser.add_argument("--methods", nargs="+", default=list(SETTINGS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--updates", type=int, default=150)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--prompts", default="scenes-heldout-b")
    parser.add_argument("--per-category", type=int, default=8)
    parser.add_argument("--noises", type=int, default=2)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--guidance", type=float, default=3.0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    middle = make_pairs(args.out / "pairs")
    loras = {(m, s): train(args, m, s) for m in args.methods for s in args.seeds}
    prompts = chosen_prompts(args.prompts, args.per_category)
    base = measure(draw(None, prompts, args), prompts, args.noises)
    report = {"middle": middle, "base": (base["radius"] > middle).mean()}
    print(f"in the style before: {100 * report['base']:.1f} % of {base['radius'].size}")
    for (method, seed), lora in loras.items():
        found = measure(draw(str(lora), prompts, args), prompts, args.noises)
        share = interval((found["radius"] > middle).astype(float) - (base["radius"] > middle))
        right, pixels = (interval(found[name] - base[name]) for name in ("exact", "radius"))
        report[f"{method}-{seed}"] = {"share": share, "exact": right, "radius": pixels}
        for name, found_gain in (("style", share), ("exact", right)):
            mean, low, high = (100 * value for value in found_gain)
            print(f"{method} {seed} {name} {mean:+.1f} ({low:+.1f} to {high:+.1f})")
        print(f"{method} {seed} radius {pixels[0]:+.2f} ({pixels[1]:+.2f} to {pixels[2]:+.2f}) px")
    write_json(args.out / "report.json", report)


if __name__ == "__main__":
    main()
