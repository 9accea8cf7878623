"""Do the intervals of `align evaluate` keep their word?

    python scripts/bench/interval_coverage.py                        # coverage on synthetic data
    python scripts/bench/interval_coverage.py --pool runs/pool       # and a method against itself

Coverage: scores of prompts are drawn from distributions whose mean is known (a beta-binomial
share of exact pictures, as prompts differ in difficulty; a skewed reward), 1,000 times each; the
95 % interval should hold the truth in 93 to 97 % of them. Where a category has one prompt, or
there are hardly any, in 92 % at least; and differences of shares on few prompts.

Itself: a pool of pictures of each prompt, judged, under many seeds. 1,000 times two disjoint sets
of seeds are drawn for every prompt and compared as two methods would be; as there is no
difference, 0 should lie inside the interval in at least 92 %. The pool is an `align evaluate` run
with many images per prompt, for example

    align evaluate --prompts scenes-heldout-a --per-category 3 --num-images 16 \\
        --num-inference-steps 10 --out runs/pool
"""

import argparse
import json
from pathlib import Path

import numpy as np

from align.evaluation.statistics import difference, estimate
from align.runs.files import write_json

REPETITIONS = 1000
FEW = (
    [1, 1, 1, 1, 1, 2], [1, 1, 1, 1, 1, 8], [1, 1, 1, 20], [1, 30], [1, 1, 8, 8, 8],
    [1, 3, 2, 1, 1], [1] * 6, [2], [3], [2, 2], [2, 2, 2],
)  # fmt: skip
# Beta distributions of a prompt's chance of an exact picture, category by category.
CHANCES = ((1.2, 1.0), (2.0, 4.0), (0.8, 2.0), (3.0, 1.5), (1.0, 6.0), (0.5, 0.5))


def exact_shares(generator: np.random.Generator, prompts: int, pictures: int, categories: int):
    """(values, strata, truth): shares of exact pictures, prompts of several categories."""
    values, strata, truths = [], [], []
    for number in range(categories):
        a, b = CHANCES[number % len(CHANCES)]
        chances = generator.beta(a, b, size=prompts)
        values.append(generator.binomial(pictures, chances) / pictures)
        strata += [str(number)] * prompts
        truths.append(a / (a + b))
    return np.concatenate(values), strata, float(np.mean(truths))


def skewed_rewards(generator: np.random.Generator, prompts: int, pictures: int, categories: int):
    """(values, strata, truth): log-normal levels of prompts and noise of pictures."""
    values, strata = [], []
    for number in range(categories):
        levels = generator.lognormal(0, 0.5, size=(prompts, 1))
        values.append((levels + generator.normal(0, 0.3, (prompts, pictures))).mean(1))
        strata += [str(number)] * prompts
    return np.concatenate(values), strata, float(np.exp(0.5**2 / 2))


def coverage(make, prompts: int, pictures: int, categories: int, bounds) -> float:
    """Share of repetitions whose interval holds the truth."""
    generator, hits = np.random.default_rng(prompts + 100 * pictures + 10_000 * categories), 0
    for repetition in range(REPETITIONS):
        values, strata, truth = make(generator, prompts, pictures, categories)
        found = estimate(values, strata, bounds=bounds, seed=repetition)
        hits += found.low <= truth <= found.high
    return hits / REPETITIONS


def measure_coverage() -> list[dict]:
    """The table of coverages: prompts a category, pictures a prompt, categories."""
    rows = []
    for name, make, bounds in (
        ("share of exact pictures", exact_shares, (0.0, 1.0)),
        ("skewed reward", skewed_rewards, None),
    ):
        for prompts, pictures, categories in (
            (12, 4, 1), (12, 4, 9), (30, 4, 1), (60, 1, 1), (60, 4, 1), (60, 1, 9), (12, 1, 9),
        ):  # fmt: skip
            covered = coverage(make, prompts, pictures, categories, bounds)
            rows.append(
                {
                    "data": name,
                    "prompts": prompts,
                    "pictures": pictures,
                    "categories": categories,
                    "covered": covered,
                }
            )
            print(f"| {name} | {prompts} | {pictures} | {categories} | {covered:.1%} |", flush=True)
    return rows


def measure_few(sizes_list=FEW) -> list[dict]:
    """Categories of few prompts: normal values, and differences of shares, 0.95 against 0.9 and
    0.5 against 0.5."""
    rows = []
    for sizes in sizes_list:
        strata = [str(i) for i, size in enumerate(sizes) for _ in range(size)]
        generator, count = np.random.default_rng(0), len(strata)
        hits, shares, chance = 0, 0, 0
        for repetition in range(REPETITIONS):
            found = estimate(generator.normal(size=count), strata, seed=repetition)
            hits += found.low <= 0 <= found.high
            good, bad, one, other = (
                (generator.random(count) < p).astype(float) for p in (0.95, 0.9, 0.5, 0.5)
            )
            found = difference(good, bad, strata, bounds=(0, 1), seed=repetition)
            shares += found.low <= -0.05 <= found.high
            chance += not difference(one, other, strata, bounds=(0, 1), seed=repetition).decided
        found = {"normal": hits, "shares": shares, "alike": chance}
        rows.append({"sizes": sizes, **{name: n / REPETITIONS for name, n in found.items()}})
        text = " | ".join(f"{rows[-1][name]:.1%}" for name in found)
        print(f"| {', '.join(map(str, sizes))} | {text} |", flush=True)
    return rows


def read_pool(folder: Path, measure: str) -> tuple[np.ndarray, list[str]]:
    """Scores [prompts, pictures] of the first method in an `align evaluate` run; categories."""
    files = sorted((folder / "prompts").glob("*.json"))
    records = [json.loads(file.read_text()) for file in files]
    if not records:
        raise SystemExit(f"{folder} has no evaluated prompts; make it by align evaluate")
    method = records[0]["results"][0]["method"]
    scores = [
        [one["scores"][measure] for one in record["results"] if one["method"] == method]
        for record in records
    ]
    return np.array(scores), [record["category"] for record in records]


def against_itself(scores: np.ndarray, strata: list[str], pictures: int) -> float:
    """Share of resamplings in which 0 lies inside the interval of the paired difference."""
    if scores.shape[1] < 2 * pictures:
        raise SystemExit(f"the pool has {scores.shape[1]} pictures a prompt, not {2 * pictures}")
    generator, inside = np.random.default_rng(0), 0
    for repetition in range(REPETITIONS):
        order = generator.random(scores.shape).argsort(axis=1)
        first = np.take_along_axis(scores, order[:, :pictures], 1).mean(1)
        second = np.take_along_axis(scores, order[:, pictures : 2 * pictures], 1).mean(1)
        inside += not difference(first, second, strata, seed=repetition).decided
    return inside / REPETITIONS


def main() -> None:
    """Print the tables and, where asked, write them as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--pool", type=Path, help="an `align evaluate` run with many images")
    parser.add_argument("--pool-only", action="store_true", help="leave the coverage out")
    parser.add_argument("--few-only", action="store_true", help="of the coverage, few prompts only")
    parser.add_argument("--out", type=Path, help="a JSON file for the figures")
    args = parser.parse_args()
    found: dict = {}
    if not args.pool_only and not args.few_only:
        print("| data | prompts a category | pictures a prompt | categories | covered |")
        print("|---|---|---|---|---|")
        found["coverage"] = measure_coverage()
    if not args.pool_only:
        print("\n| prompts by category | normal values | 0.95 against 0.9 | equal, undecided |")
        print("|---|---|---|---|")
        found["few"] = measure_few()
    if args.pool:
        found["itself"] = []
        print("\n| measure | prompts | pictures a side | 0 inside |\n|---|---|---|---|")
        for measure in ("exact", "partial", "scenes-vqa"):
            scores, strata = read_pool(args.pool, measure)
            for pictures in (1, scores.shape[1] // 2):
                share = against_itself(scores, strata, pictures)
                row = {"measure": measure, "prompts": len(scores), "pictures": pictures}
                found["itself"].append(row | {"inside": share})
                print(f"| {measure} | {len(scores)} | {pictures} | {share:.1%} |", flush=True)
    if args.out:
        write_json(args.out, found)


if __name__ == "__main__":
    main()
