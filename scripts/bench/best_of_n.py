"""Best-of-N on embedded/scenes by the calibrated rewards, judged by the verifier.

    python scripts/bench/best_of_n.py                            # 12 prompts a category
    python scripts/bench/best_of_n.py --prompts 4 --out runs/bon # smaller
    python scripts/bench/best_of_n.py --resume --out runs/bon    # go on, from any process

N = 1, 4, 16, 32 on `scenes-heldout-a`, nested: the candidates of a smaller N are among those of a
larger one, drawn once. The default rewards choose, weighted for each prompt's category by
their agreement with the verifier on other prompts; the verifier only judges. It is an `align
compare`, so the folder holds report.html with pictures and curves, and each prompt is a file.
"""

import argparse
import json
from pathlib import Path

from align.commands.compare import compare
from align.config.evaluate import CompareConfig
from align.evaluation.wording import with_interval
from align.rewards.catalogue import SCENES_REWARD


def main() -> None:
    """Run or continue it and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--prompts", type=int, default=12, help="prompts a category")
    parser.add_argument("--counts", default="1,4,16,32", help="the Ns")
    parser.add_argument("--set", default="scenes-heldout-a", help="a built-in prompt set")
    parser.add_argument("--model", default="embedded/scenes")
    parser.add_argument("--reward", default=SCENES_REWARD)
    parser.add_argument("--weights", default="category", help="category, uniform or a table")
    parser.add_argument("--num-inference-steps", type=int, default=25)
    parser.add_argument("--guidance-scale", type=float, default=3.0)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/best-of-n"))
    parser.add_argument("--resume", action="store_true")
    args = parser.parse_args()
    place = {"resume" if args.resume else "out": str(args.out)}
    config = CompareConfig(
        model=args.model,
        prompts=args.set,
        per_category=args.prompts,
        methods="bon",
        budget=",".join(f"{count}images" for count in args.counts.split(",")),
        reward=args.reward,
        weights=args.weights,
        judge="verifier",
        num_inference_steps=args.num_inference_steps,
        guidance_scale=args.guidance_scale,
        repeats=args.repeats,
        seed=args.seed,
        **place,
    )
    print(compare(config))
    file = args.out / "report.json"
    if file.is_file():
        print(table(json.loads(file.read_text())))


def table(report: dict) -> str:
    """N by N: exact and partial with intervals."""
    lines = ["| N | exactly as asked | stated facts right |", "|---|---|---|"]
    for one in report["figures"]:
        cells = [with_interval(one["overall"][name], name) for name in ("exact", "partial")]
        lines.append(f"| {one['budget'].removesuffix('images')} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
