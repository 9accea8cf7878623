"""How soon `align train` has the held-out reward that TRL's AlignPropTrainer has after 20 updates.

    python scripts/bench/trl_reach.py --trl-python trl-env/bin/python

The environment is that of trl.py, and so are both sides: TRL with its defaults on
`embedded/scenes` (batch 8, 50 steps, rank 4, random window), ours by a preset, the reward
`scenes-clip`, float32, one thread. The reward is judged on 64 held-out prompts from four fixed
noises each, both sides drawn alike; only the seconds of the updates count. Where TRL's gain after
20 updates is under two standard errors it goes on to 60.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from trl import ask, start

import align
from align.language.prompts import load_prompts

NOISES = 4


@torch.no_grad()
def judge(
    args: argparse.Namespace, prompts: list[str], lora: str | None, name: str = "scenes-clip"
) -> np.ndarray:
    """The mean reward of each prompt; `lora` is a folder, =WEIGHT optional."""
    pipe = align.load_pipeline("embedded/scenes", lora=[lora] if lora else [])
    reward = align.load_reward(name)
    scores = []
    for first in range(0, len(prompts), 4):
        part = [prompt for prompt in prompts[first : first + 4] for _ in range(NOISES)]
        seeds = [1000 * (first + k // NOISES) + k % NOISES for k in range(len(part))]
        images = align.generate(
            pipe,
            part,
            generator=[torch.Generator().manual_seed(seed) for seed in seeds],
            num_inference_steps=args.judge_steps,
            guidance_scale=args.judge_guidance_scale,
        )
        scores.append(reward(images, part).view(-1, NOISES).mean(1).double())
    return torch.cat(scores).numpy()


def train(child, numbers: range, folder: str) -> tuple[float, float]:
    """Updates, then a LoRA in `folder`: seconds of the updates, GiB above the loaded model."""
    answers = [ask(child, number) for number in numbers]
    ask(child, folder)
    return sum(answer["seconds"] for answer in answers), answers[-1]["above_gib"]


def error(gain: np.ndarray) -> float:
    return float(gain.std(ddof=1) / len(gain) ** 0.5)


def compare(args: argparse.Namespace, folder: Path) -> None:
    prompts = load_prompts("scenes-heldout-a").prompts
    chosen = np.random.default_rng(0).permutation(len(prompts))
    held_out = [prompts[i] for i in chosen[:64]]
    (folder / "prompts.json").write_text(json.dumps([prompts[i] for i in chosen[64:]]))
    base = judge(args, held_out, None)
    print(f"base: reward {base.mean():.4f}", flush=True)
    options = ["--window", "random", "--threads", str(args.threads), "--preset", args.preset]
    options += ["--settings", args.settings]
    prompt_file = str(folder / "prompts.json")
    theirs = start("trl", args.trl_python, prompt_file, options)
    seconds, done, gain = 0.0, 0, np.zeros(64)
    for updates in args.trl_updates:
        lora = str(folder / f"trl-{updates}")
        took, memory = train(theirs, range(done, updates), lora)
        seconds, done = seconds + took, updates
        gain = judge(args, held_out, lora) - base
        print(
            f"TRL: {updates} updates, {seconds:.0f} s, {memory:.2f} GiB above the loaded model, "
            f"gain {gain.mean():+.4f} (standard error {error(gain):.4f})",
            flush=True,
        )
        if gain.mean() >= 2 * error(gain):
            break
    theirs.stdin.close()
    theirs.wait()
    ours = start("preset", sys.executable, prompt_file, options)
    spent, number = 0.0, 0
    while spent < seconds:
        lora = str(folder / f"ours-{number}")
        took, own = train(ours, range(number, number + args.every), lora)
        spent, number = spent + took, number + args.every
        reached = judge(args, held_out, f"{lora}={args.weight:g}") - base
        print(
            f"{args.preset}: {number} updates, {spent:.0f} s ({spent / seconds:.2f}x), {own:.2f} "
            f"GiB ({own / memory:.2f}x), gain {reached.mean():+.4f} ({error(reached):.4f})",
            flush=True,
        )
        if reached.mean() >= gain.mean():
            break
    ours.stdin.close()
    ours.wait()


def run_beside_trl(
    parser: argparse.ArgumentParser, compare: Callable[[argparse.Namespace, Path], None]
) -> None:
    """Parse what every comparison with TRL takes, and make it in a folder that goes away."""
    parser.add_argument("--trl-python", help="Python of the environment with TRL 0.12.2")
    parser.add_argument("--preset", default="embedded")
    parser.add_argument("--judge-steps", type=int, default=10)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.trl_python is None:
        print("left out: name the Python of an environment with TRL 0.12.2 by --trl-python")
        return
    with tempfile.TemporaryDirectory() as folder:
        compare(args, Path(folder))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--settings", default="{}", help="JSON of settings beside the preset")
    parser.add_argument("--weight", type=float, default=1.0, help="of ours where it is judged")
    parser.add_argument("--trl-updates", type=int, nargs="+", default=[20, 60])
    parser.add_argument("--every", type=int, default=10, help="updates between two judgments")
    parser.add_argument("--judge-guidance-scale", type=float, default=3.0)
    run_beside_trl(parser, compare)


if __name__ == "__main__":
    main()
