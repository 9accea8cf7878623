"""Noise search at equal cost, judged by the verifier, which no search sees.

    python scripts/bench/noise_search.py run                 # all variants, 50 and 200 passes, b
    python scripts/bench/noise_search.py run --variants carinox --budgets 50 --tune   # on half a
    python scripts/bench/noise_search.py report
    python scripts/bench/noise_search.py ratio               # one backward against one a reward
    python scripts/bench/noise_search.py diversity           # 8 seeds of a prompt, before and after
    python scripts/bench/noise_search.py selection --tune --per-category 5   # what rewards find

Costs are forward-equivalents a prompt; a backward counts at its cost measured in the same run.
All variants maximize the same four rewards in units of their spread, z(...); `carinox` weighs
them by category. `run` adds a line a prompt to a file per variant, budget and seed, and leaves out
those that are there, so it can be stopped and shared between processes by `--variants`.
Settings may be tuned with `--tune` (scenes-heldout-a) only.
"""

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import bootstrap

import align
from align import scenes
from align.noise_opt.search import measure_backward_cost
from align.noise_opt.weights import weigh
from align.training.judge import diversity as pixel_diversity

TERMS = ("scenes-detector", "scenes-clip", "scenes-vqa", "scenes-preference")
ALL = f"z({','.join(TERMS)})"
# name -> (reward, settings); base is bon with one image.
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "base": (ALL, {"method": "bon", "seeds": 1, "weights": "uniform"}),
    "bon": (ALL, {"method": "bon", "weights": "uniform"}),
    "reno": (ALL, {"method": "reno"}),
    "carinox-paper": (ALL, {"method": "carinox-paper"}),
    "carinox": (ALL, {"method": "carinox"}),
    "zero-order": (ALL, {"method": "zero-order", "weights": "uniform"}),
    "evolution": (ALL, {"method": "evolution", "weights": "uniform"}),
    "carinox-uniform": (ALL, {"method": "carinox", "weights": "uniform"}),
    "explore-only": (ALL, {"method": "carinox", "explore_share": 1.0}),
    "optimize-only": (ALL, {"method": "carinox", "explore_share": 0.0}),
    "carinox-exact": (ALL, {"method": "carinox", "exact": True}),
    **{f"carinox-{t}": (f"z({t})", {"method": "carinox"}) for t in TERMS},
    # not bounded by the budget: the published lengths
    "reno-full": (ALL, {"method": "reno", "iterations": 50, "budget": None}),
    "carinox-paper-full": (ALL, {"method": "carinox-paper", "budget": None}),
    # the published step of 5 is for noises four times as long (4x64x64 where this has 4x16x16)
    "reno-full-scaled": (
        ALL,
        {"method": "reno", "iterations": 50, "learning_rate": 1.25, "budget": None},
    ),
    # equal iterations: one backward of the combined gradient on the image, or one a reward
    "iterations-12": (ALL, {"method": "carinox", "seeds": 16, "iterations": 12, "budget": None}),
    "iterations-12-exact": (
        ALL,
        {"method": "carinox", "seeds": 16, "iterations": 12, "exact": True, "budget": None},
    ),
}
SELECTED_OF = (8, 25, 50, 100, 200)
MAIN = ("base", "bon", "reno", "carinox-paper", "carinox")


def prompts_of(args: argparse.Namespace) -> tuple[str, ...]:
    half = "scenes-heldout-a" if args.tune else "scenes-heldout-b"
    return scenes.prompt_set(half, args.per_category)


def cell(args: argparse.Namespace, variant: str, budget: str, seed: int) -> Path:
    label = "any" if VARIANTS[variant][1].get("budget", budget) is None else budget
    label = "1" if variant == "base" else label
    return args.out / ("tune" if args.tune else "report") / f"{variant}@{label}@{seed}.jsonl"


def read(path: Path) -> dict[str, dict]:
    lines = path.read_text().splitlines() if path.exists() else []
    return {row["prompt"]: row for row in map(json.loads, lines)}


def config_of(args: argparse.Namespace, variant: str, budget: str, seed: int, cost: float):
    values = {"budget": f"{float(budget) * args.steps:g}nfe", **VARIANTS[variant][1]}
    values |= {"guidance_scale": args.guidance_scale, "num_inference_steps": args.steps}
    values |= json.loads(args.set) if variant not in ("base", "bon") else {}
    return align.OptimizeConfig(**values, seed=100_000 * seed, backward_cost=cost)


def backward_cost(args: argparse.Namespace, pipe) -> float:
    """Measured once and kept, so that all cells of a run count alike."""
    path = args.out / "cost.json"
    if not path.exists():
        config = align.OptimizeConfig(
            num_inference_steps=args.steps, guidance_scale=args.guidance_scale
        )
        cost = measure_backward_cost(pipe, "two green stars", config)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"backward_cost": round(cost, 3)}))
    return json.loads(path.read_text())["backward_cost"]


def search(pipe, prompt: str, reward, config) -> dict[str, Any]:
    """One prompt: the result's scores, the verifier's word on it, and what it cost."""
    start, busy = time.perf_counter(), time.process_time()
    step = list(align.optimize(pipe, prompt, reward, config))[-1]
    seconds, busy = time.perf_counter() - start, time.process_time() - busy
    exact, partial = scenes.verify([prompt], step.best_image[None].float())
    return {
        "prompt": prompt, "exact": float(exact), "partial": float(partial),
        "total": step.best_total, "terms": step.best_terms, "iterations": step.iteration + 1,
        "forwards": step.generator_forwards, "backwards": step.generator_backwards,
        "reward_forwards": step.reward_forwards, "seconds": seconds, "cpu_seconds": busy,
    }  # fmt: skip


def run(args: argparse.Namespace) -> None:
    pipe, prompts = align.load_pipeline(args.model), prompts_of(args)
    cost, rewards = backward_cost(args, pipe), {}
    for variant in args.variants:
        expression = VARIANTS[variant][0]
        reward = rewards.setdefault(expression, align.load_reward(expression))
        for budget in args.budgets:
            for seed in range(args.seeds):
                path = cell(args, variant, budget, seed)
                path.parent.mkdir(parents=True, exist_ok=True)
                done = read(path)
                config = config_of(args, variant, budget, seed, cost)
                with path.open("a") as file:
                    for prompt in prompts:
                        if prompt not in done:
                            row = search(pipe, prompt, reward, config)
                            file.write(json.dumps(row) + "\n")
                            file.flush()
                rows = list(read(path).values())
                exact = 100 * np.mean([row["exact"] for row in rows])
                print(f"{path.stem}: {len(rows)} prompts, exact {exact:.1f} %", flush=True)


def exact_of(args: argparse.Namespace, variant: str, budget: str, key: str = "exact"):
    """prompt -> mean over the seeds; empty where a cell is missing."""
    cells = [read(cell(args, variant, budget, seed)) for seed in range(args.seeds)]
    common = [p for p in prompts_of(args) if all(p in rows for rows in cells)]
    return {p: float(np.mean([rows[p][key] for rows in cells])) for p in common}


def report(args: argparse.Namespace) -> None:
    """Tables in Markdown: every variant, and paired differences with prompts as clusters."""
    print(f"backward cost {json.loads((args.out / 'cost.json').read_text())['backward_cost']}")
    for budget in args.budgets:
        found = {v: exact_of(args, v, budget) for v in VARIANTS}
        found = {v: rows for v, rows in found.items() if rows}
        columns = ("variant", "n", "exact %", "partial %", "passes", "seconds", "CPU s")
        print(f"\n## {budget} passes\n\n| {' | '.join(columns)} |\n{'|---' * len(columns)}|")
        for variant, rows in found.items():
            others = {
                key: np.mean(list(exact_of(args, variant, budget, key).values()))
                for key in ("partial", "forwards", "backwards", "seconds", "cpu_seconds")
            }
            cost = json.loads((args.out / "cost.json").read_text())["backward_cost"]
            passes = others["forwards"] + cost * others["backwards"]
            values = np.array(list(rows.values()))
            print(
                f"| {variant} | {len(rows)} | {interval(values)} | {100 * others['partial']:.1f} "
                f"| {passes:.0f} | {others['seconds']:.1f} | {others['cpu_seconds']:.1f} |"
            )
        print("\n| difference (points) | n | all | prompts the base gets right in < 10 % |")
        print("|---|---|---|---|")
        for one, other in pairs(found):
            both = [p for p in found[one] if p in found[other]]
            gain = np.array([found[one][p] - found[other][p] for p in both])
            hard = [found.get("base", {}).get(p, 1.0) < 0.1 for p in both]
            few = interval(gain[hard], "+") if any(hard) else ""
            print(f"| {one} - {other} | {len(both)} | {interval(gain, '+')} | {few} |")
        base, ours = found.get("base"), found.get("carinox")
        if base and ours:
            before, after = (np.mean([rows[p] for p in ours]) for rows in (base, ours))
            print(f"\ncarinox above base: {100 * (after / max(before, 1e-9) - 1):+.0f} % relative")
        for variant in found if args.by_category else ():
            parts: dict[str, list[float]] = {}
            for prompt, value in found[variant].items():
                parts.setdefault(scenes.category(prompt), []).append(value)
            line = ", ".join(f"{c} {100 * np.mean(v):.0f}" for c, v in parts.items())
            print(f"{variant}: {line}")


def pairs(found: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for other in found:
        if other != "carinox" and "carinox" in found:
            yield "carinox", other
    if "carinox-paper" in found and "reno" in found:
        yield "carinox-paper", "reno"


def interval(values: np.ndarray, sign: str = "") -> str:
    """Mean of percentages with its 95 % bootstrap interval over prompts."""
    mean = f"{100 * values.mean():{sign}.1f}"
    if len(values) < 2 or values.std() == 0:
        return mean
    ci = bootstrap((values,), np.mean, method="percentile", rng=0).confidence_interval
    return f"{mean} ({100 * ci.low:{sign}.1f} to {100 * ci.high:{sign}.1f})"


def ratio(args: argparse.Namespace) -> None:
    """Time of an iteration with four rewards: one combined backward, against one a reward."""
    pipe, reward = align.load_pipeline(args.model), align.load_reward(ALL)
    prompt, seconds = "a red circle left of a blue square", {"reno": [], "carinox-paper": []}
    for repeat in range(args.repeats):
        for method, times in seconds.items():  # interleaved: the machine may be busy
            config = align.OptimizeConfig(
                method=method, seeds=1, iterations=args.iterations, seed=repeat,
                num_inference_steps=args.steps, guidance_scale=args.guidance_scale,
            )  # fmt: skip
            before, busy = 0.0, []
            start = time.process_time()
            for _ in align.optimize(pipe, prompt, reward, config):
                now = time.process_time() - start
                busy.append(now - before)
                before = now
            times += busy[1:-1]  # the first warms up, the last has no backward
    one, each = (np.median(seconds[name]) for name in ("reno", "carinox-paper"))
    print(
        f"CPU time of an iteration, four rewards: one backward {1000 * one:.1f} ms, a backward a "
        f"reward {1000 * each:.1f} ms, ratio {one / each:.3f} "
        f"(medians of {len(seconds['reno'])} iterations)"
    )


def diversity(args: argparse.Namespace) -> None:
    """How much the pictures of 8 seeds of a prompt differ, optimized over the base's: in pixels as
    `align train` reports it, and as mean distance of the features of `scenes-clip`."""
    pipe, reward = align.load_pipeline(args.model), align.load_reward(ALL)
    cost, features = backward_cost(args, pipe), align.load_reward("scenes-clip").models[0]
    rows = {"pixels": [], "features": []}
    for prompt in prompts_of(args)[:: args.per_category]:  # one a category
        first, last = [], []
        for seed in range(8):
            config = config_of(args, "carinox", args.budgets[0], seed, cost)
            steps = list(align.optimize(pipe, prompt, reward, config))
            first.append(steps[0].images[0])
            last.append(steps[-1].best_image)
        before, after = torch.stack(first), torch.stack(last)
        with torch.no_grad():
            rows["pixels"].append((pixel_diversity(before[None]), pixel_diversity(after[None])))
            tower = features.image_tower
            rows["features"].append((spread(tower(before)), spread(tower(after))))
    for name, values in rows.items():
        before, after = np.mean(values, axis=0)
        print(f"{name}: base {before:.4f}, optimized {after:.4f}, share {after / before:.2f}")


@torch.no_grad()
def selection(args: argparse.Namespace) -> None:
    """How often each way to weigh the rewards picks an exact picture of N, the same for all."""
    pipe, reward = align.load_pipeline(args.model), align.load_reward(ALL)
    ways = {"by category": (reward, "category"), "equal": (reward, "uniform")}
    ways |= {term: (align.load_reward(f"z({term})"), "uniform") for term in TERMS}
    found: dict[int, dict[str, list[float]]] = {}
    most = max(SELECTED_OF)
    for prompt in prompts_of(args):
        config = config_of(args, "bon", str(most), 0, 1.0)
        images = torch.cat([s.images for s in align.optimize(pipe, prompt, reward, config)])
        terms = reward.terms(images, [prompt] * most)
        exact = scenes.verify([prompt] * most, images.float())[0].float()
        for count in SELECTED_OF:  # disjoint groups, for less noise
            cells, rows = found.setdefault(count, {}), exact.view(-1, count)
            cells.setdefault("one there", []).append(float(rows.amax(1).mean()))
            for way, (scorer, weights) in ways.items():
                totals = weigh(scorer, prompt, weights).objective.total(terms)
                picked = totals.view(-1, count).argmax(1, keepdim=True)
                cells.setdefault(way, []).append(float(rows.gather(1, picked).mean()))
    print(f"| picked by | {' | '.join(f'of {count}, %' for count in SELECTED_OF)} |")
    print("| --- " * (1 + len(SELECTED_OF)) + "|")
    for way in found[most]:
        cells = [interval(np.array(found[count][way])) for count in SELECTED_OF]
        print(f"| {way} | {' | '.join(cells)} |")
        if way not in ("by category", "one there"):
            leads = [np.subtract(cells["by category"], cells[way]) for cells in found.values()]
            leads = [interval(lead, "+") for lead in leads]
            print(f"| by category - {way}, points | {' | '.join(leads)} |")


def spread(rows: torch.Tensor) -> float:
    return float(torch.pdist(rows.flatten(1)).mean())


COMMANDS = {
    "run": run, "report": report, "ratio": ratio, "diversity": diversity, "selection": selection,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("command", choices=tuple(COMMANDS))
    parser.add_argument("--model", default="embedded/scenes-turbo")
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--guidance-scale", type=float)
    parser.add_argument("--variants", nargs="+", default=list(MAIN), choices=list(VARIANTS))
    parser.add_argument("--budgets", nargs="+", default=["50", "200"])
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--per-category", type=int, default=20)
    parser.add_argument("--tune", action="store_true", help="on scenes-heldout-a")
    parser.add_argument("--set", default="{}", help="JSON of further settings of the searches")
    parser.add_argument("--by-category", action="store_true")
    parser.add_argument("--iterations", type=int, default=8, help="of ratio")
    parser.add_argument("--repeats", type=int, default=3, help="of ratio")
    parser.add_argument("--out", type=Path, default=Path("work/noise-search"))
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    COMMANDS[args.command](args)


if __name__ == "__main__":
    main()
