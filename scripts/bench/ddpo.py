"""Reward queries until TRL's DDPOTrainer has the held-out reward that `align train` has after 200.

    python scripts/bench/ddpo.py --trl-python trl-env/bin/python

The environment is that of trl.py. Both sides: `embedded/scenes`, one reward (`jpeg` as in DDPO's
own experiments, or `scenes-clip`), 10 steps, guidance 5, batches of 8, float32. Ours takes the
reward's gradient with the preset; DDPO (LoRA of rank 4) draws with noise at every step and learns
from the scores alone, four batches an epoch. Its learning rate is the best of three after 1,000
queries; that run goes on until it has ours or 25 times as many queries are spent. The reward is
judged on 64 held-out prompts from four fixed noises each, both sides drawn alike.
"""

import argparse
import json
import math
import sys
from pathlib import Path

import numpy as np
from trl import DDPO_BATCHES, start
from trl_reach import error, judge, run_beside_trl, train

from align.language.prompts import load_prompts

BATCH = 8
SETTINGS = '{"num_inference_steps": 10, "guidance_scale": 5}'  # as DDPO has them here


def gain_of(args: argparse.Namespace, held_out: list[str], base: np.ndarray, lora: str):
    gain = judge(args, held_out, lora, args.reward) - base
    return gain.mean(), f"gain {gain.mean():+.4f} (standard error {error(gain):.4f})"


def compare(args: argparse.Namespace, folder: Path) -> None:
    prompts = load_prompts("scenes-heldout-a").prompts
    chosen = np.random.default_rng(0).permutation(len(prompts))
    held_out = [prompts[i] for i in chosen[:64]]
    (folder / "prompts.json").write_text(json.dumps([prompts[i] for i in chosen[64:]]))
    base = judge(args, held_out, None, args.reward)
    print(f"base: {args.reward} {base.mean():.4f}", flush=True)
    options = ["--reward", args.reward, "--steps", "10", "--threads", str(args.threads)]
    options += ["--preset", args.preset, "--settings", args.settings, "--batch-size", str(BATCH)]
    prompt_file = str(folder / "prompts.json")
    ours = start("preset", sys.executable, prompt_file, options)
    seconds, _ = train(ours, range(args.queries // BATCH), str(folder / "ours"))
    ours.stdin.close()
    ours.wait()
    aim, said = gain_of(args, held_out, base, str(folder / "ours"))
    print(f"ours: {args.queries // BATCH * BATCH} queries, {seconds:.0f} s, {said}", flush=True)

    each = BATCH * DDPO_BATCHES
    first, gains, children = args.choice_queries // each, {}, {}
    for rate in args.rates:
        folder_of = str(folder / f"ddpo-{rate}")
        children[rate] = start_ddpo(args, rate, prompt_file, options)
        seconds, _ = train(children[rate], range(first), folder_of)
        gains[rate], said = gain_of(args, held_out, base, folder_of)
        print(f"DDPO, rate {rate:g}: {first * each} queries, {seconds:.0f} s, {said}", flush=True)
    best = max(gains, key=gains.get)
    done, gain = first, gains[best]
    last = math.ceil(args.factor * args.queries / each)
    while gain < aim and done < last:
        folder_of = str(folder / f"ddpo-{best}-{done}")
        end = min(done + first, last)
        seconds, _ = train(children[best], range(done, end), folder_of)
        done = end
        gain, said = gain_of(args, held_out, base, folder_of)
        print(
            f"DDPO, rate {best:g}: {done * each} queries ({done * each / args.queries:.0f}x), "
            f"{seconds:.0f} s more, {said}",
            flush=True,
        )
    for child in children.values():
        child.stdin.close()
        child.wait()


def start_ddpo(args: argparse.Namespace, rate: float, prompt_file: str, options: list[str]):
    """DDPO's process. Eta is just below 1, whose rounding errors give no number here (trl.py)."""
    own = ["--eta", "0.99", "--ddpo-learning-rate", str(rate)]
    return start("ddpo", args.trl_python, prompt_file, options + own)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--reward", choices=["jpeg", "scenes-clip"], default="jpeg")
    parser.add_argument("--settings", default=SETTINGS, help="JSON of settings beside the preset")
    parser.add_argument("--queries", type=int, default=200, help="of ours")
    parser.add_argument("--choice-queries", type=int, default=1000, help="of each rate of DDPO")
    parser.add_argument("--factor", type=float, default=25, help="of our queries, where DDPO ends")
    parser.add_argument("--rates", type=float, nargs=3, default=[3e-4, 1e-3, 3e-3])
    parser.add_argument("--judge-guidance-scale", type=float, default=5.0)
    run_beside_trl(parser, compare)


if __name__ == "__main__":
    main()
