"""How far the embedded rewards agree with the verifier, and what choosing pictures by them gains.

    python scripts/bench/rewards.py --prompts 20 --images 8

Makes pictures of held-out prompts (half a, so that half b stays for reporting; on seen ones, which
they were trained with, rewards do better) with `embedded/scenes` and its one-step student, and

1. calibrates on every other prompt, rated by the verifier's exact: trust.json and trust.png of
   align/embedded/rewards, used by category-aware weights. Mean and std, which `z(...)` uses, are
   kept, so that expressions keep their meaning;
2. reports on the other prompts: within-prompt pairwise accuracy of each reward, against the share
   of stated facts, and the verifier's exact of the best of the pictures by each reward, by their
   uniform sum, by the category-weighted one, against the mean picture and the best possible choice;
   the same on pictures of the one-step student and of NAR; seconds of a forward and backward.

Pictures are kept in --work and not made twice.
"""

import argparse
import itertools
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

import align
from align.commands.calibrate import calibrate, read_ratings, score
from align.nar import NARPipeline
from align.nar.load import load_nar_pipeline
from align.rewards import load_reward
from align.rewards.catalogue import SCENES_REWARD
from align.rewards.trust import EMBEDDED_TABLE, category_weights, ordered_pairs, read_table
from align.runs.files import atomic_path, write_json
from align.runs.folder import to_pil
from align.runs.pictures import read_image
from align.scenes import CATEGORIES, category, prompt_set, verify

ROOT = Path(__file__).parents[2]
STUDENT = "embedded/scenes-turbo"
MODELS = f"embedded/scenes and {STUDENT} each"
REWARDS = ("scenes-detector", "scenes-clip", "scenes-preference", "scenes-vqa")
NAR = "embedded/nar-scenes"


def make_pictures(
    folder: Path, prompts: list[str], args: argparse.Namespace, model: str, **settings: float
) -> Path:
    """`--images` pictures a prompt and their verdicts; returns the JSONL file that lists them."""
    folder.mkdir(parents=True, exist_ok=True)
    listing = folder / "pictures.jsonl"
    rows = [json.loads(line) for line in listing.open()] if listing.exists() else []
    done = {row["prompt"] for row in rows if row["model"] == model}
    pipe = load_nar_pipeline(NAR) if model == NAR else align.load_pipeline(model)
    for number, prompt in enumerate(prompts):
        if prompt in done:
            continue
        images = draw(pipe, prompt, args.images, 1000 * number, **settings)
        exact, partial = verify([prompt] * args.images, images)
        lines = []
        for i, image in enumerate(images):
            name = f"{Path(model).name}-{number:04d}-{i}.png"
            with atomic_path(folder / name) as temporary:
                to_pil(image).save(temporary)
            lines.append({"image": name, "prompt": prompt, "category": category(prompt),
                          "rating": float(exact[i]), "partial": float(partial[i]),
                          "model": model})  # fmt: skip
        with listing.open("a") as file:
            file.writelines(json.dumps(line) + "\n" for line in lines)
        print(f"{number + 1}/{len(prompts)} {prompt}: {float(exact.mean()):.2f} exact", flush=True)
    return listing


def draw(pipe: Any, prompt: str, count: int, seed: int, **settings: Any) -> torch.Tensor:
    """`count` pictures of a prompt, of a diffusion model or of NAR."""
    if isinstance(pipe, NARPipeline):
        generators = [torch.Generator().manual_seed(seed + i) for i in range(count)]
        return pipe([prompt] * count, generator=generators, output_type="pt").images.clamp(0, 1)
    return align.generate(pipe, [prompt] * count, seed=seed, **settings)


def statistics_of(listing: Path) -> dict[str, dict]:
    """Mean and std of each reward: the stored ones, and those of new rewards on these pictures."""
    stored = read_table(EMBEDDED_TABLE)["statistics"]
    known = {name: stored[name] for name in REWARDS if name in stored}
    fresh = [name for name in REWARDS if name not in stored]
    if fresh:
        scores = score(read_ratings(listing), load_reward(",".join(fresh)))
        for name, values in scores.items():
            known[name] = {
                "mean": float(values.mean()), "std": float(values.std()), "n": len(values)
            }  # fmt: skip
    return known


def two_halves(name: str, count: int) -> tuple[list[str], list[str]]:
    """Up to `count` prompts of each category in a built-in set, and as many others."""
    chosen: dict[str, list[str]] = {c: [] for c in CATEGORIES}
    for prompt in prompt_set(name):
        chosen[category(prompt)].append(prompt)
    halves = []
    for start in (0, 1):
        parts = [prompts[: 2 * count][start::2] for prompts in chosen.values()]
        ranks = itertools.zip_longest(*parts)  # so that a run that is stopped has all categories
        halves.append([prompt for rank in ranks for prompt in rank if prompt is not None])
    return halves[0], halves[1]


def judge_choices(listing: Path, table: dict) -> dict:
    """Pairwise accuracy and best-of-n figures of the held-out pictures, by category and overall."""
    rated = read_ratings(listing)
    exact = np.array([r.rating for r in rated])
    partial = np.array([json.loads(line)["partial"] for line in listing.open()])
    prompts = np.unique([r.prompt for r in rated], return_inverse=True)[1]
    categories = np.array([r.category for r in rated])
    scores = score(rated, load_reward(",".join(REWARDS)))
    statistics = table["statistics"]
    scaled = {n: (s - statistics[n]["mean"]) / statistics[n]["std"] for n, s in scores.items()}
    weighted = np.zeros(len(rated))
    for name in CATEGORIES:
        rows = categories == name
        for reward, weight in category_weights(table, name, REWARDS).items():
            weighted[rows] += weight * scaled[reward][rows]
    choices = {**scaled, "uniform": np.sum(list(scaled.values()), axis=0), "weighted": weighted}
    report: dict = {"pairwise": {}, "best_of": {}}
    for name in (*CATEGORIES, "all"):
        rows = np.ones(len(rated), bool) if name == "all" else categories == name
        report["pairwise"][name] = {
            key: pairs_in_order(s[rows], partial[rows], prompts[rows]) for key, s in choices.items()
        }
        report["best_of"][name] = best_of(choices, exact, prompts, rows)
    return report


def pairs_in_order(scores: np.ndarray, partial: np.ndarray, prompts: np.ndarray) -> dict:
    """Within-prompt pairwise accuracy, with its 95 % bootstrap interval over prompts."""
    groups = [np.flatnonzero(prompts == p) for p in np.unique(prompts)]
    counts = np.array([ordered_pairs(scores[g], partial[g]) for g in groups])
    draws = counts[np.random.default_rng(0).integers(len(groups), size=(2000, len(groups)))].sum(1)
    shares = draws[:, 0] / np.maximum(draws[:, 1], 1)
    return {
        "mean": float(counts[:, 0].sum() / counts[:, 1].sum()),
        "interval": np.percentile(shares[draws[:, 1] > 0], [2.5, 97.5]).tolist(),
        "pairs": int(counts[:, 1].sum()),
    }


def best_of(choices: dict, exact: np.ndarray, prompts: np.ndarray, rows: np.ndarray) -> dict:
    """Mean exact of the top picture of each prompt by each choice, with 95 % bootstrap interval."""
    groups = [np.flatnonzero(rows & (prompts == p)) for p in np.unique(prompts[rows])]
    picked = {
        key: np.array([exact[g[s[g].argmax()]] for g in groups]) for key, s in choices.items()
    }
    picked["any picture"] = np.array([exact[g].mean() for g in groups])
    picked["best possible"] = np.array([exact[g].max() for g in groups])
    rng = np.random.default_rng(0)
    draws = rng.integers(len(groups), size=(2000, len(groups)))
    return {
        key: {"mean": v.mean(), "interval": np.percentile(v[draws].mean(1), [2.5, 97.5]).tolist()}
        for key, v in picked.items()
    }


def seconds_for_16(listing: Path, repeats: int = 5) -> float:
    """Median time of the default rewards on 16 pictures, forward and backward."""
    rated = read_ratings(listing)[:16]
    images = torch.stack([read_image(r.image) for r in rated]).requires_grad_()
    reward = load_reward(SCENES_REWARD)
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        torch.autograd.grad(reward(images, [r.prompt for r in rated]).sum(), images)
        times.append(time.perf_counter() - start)
    return float(np.median(times[1:]))


def cell(figure: dict) -> str:
    low, high = figure["interval"]
    return f"{figure['mean']:.2f} ({low:.2f}-{high:.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompts", type=int, default=20, help="a category, in each half")
    parser.add_argument("--images", type=int, default=8, help="pictures a prompt")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--guidance", type=float, default=3.0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--work", type=Path, default=ROOT / "work/bench-rewards")
    parser.add_argument("--out", type=Path, default=EMBEDDED_TABLE)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    teacher = {"num_inference_steps": args.steps, "guidance_scale": args.guidance}
    rated, judged = two_halves("scenes-heldout-a", args.prompts)
    make_pictures(args.work / "rated", rated, args, "embedded/scenes", **teacher)
    listing = make_pictures(args.work / "rated", rated, args, STUDENT, num_inference_steps=1)
    calibrate(
        listing, ",".join(REWARDS), args.out, statistics=statistics_of(listing),
        ratings=f"scenes verifier (exact), {args.images} pictures a prompt of {MODELS}",
    )  # fmt: skip
    table, report = read_table(args.out), {}
    for model, settings in (
        ("embedded/scenes", teacher),
        (STUDENT, {"num_inference_steps": 1}),
        (NAR, {}),
    ):
        unseen = make_pictures(args.work / Path(model).name, judged, args, model, **settings)
        report[model] = judge_choices(unseen, table)
        report["seconds_16_images"] = seconds_for_16(unseen)
        for part in ("pairwise", "best_of"):
            print_table(f"{model}: {part}", report[model][part])
    write_json(args.work / "report.json", report)
    print(f"16 images, forward and backward: {report['seconds_16_images']:.3f} s")


def print_table(title: str, figures: dict) -> None:
    """Categories by choices, each with its interval."""
    print(f"\n{title}\n| category | {' | '.join(figures['all'])} |")
    print("| --- " * (1 + len(figures["all"])) + "|")
    for name, row in figures.items():
        print(f"| {name} | {' | '.join(cell(figure) for figure in row.values())} |")


if __name__ == "__main__":
    main()
