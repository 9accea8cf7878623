"""Does a LoRA trained by reward gradients make the pictures right? Judged by the verifier.

    python scripts/bench/alignprop_gain.py sweep             # base: guidance and steps, on half a
    python scripts/bench/alignprop_gain.py base              # base on half b
    python scripts/bench/alignprop_gain.py lora --seed 0     # train on half a, judge on half b
    python scripts/bench/alignprop_gain.py report            # paired gains over all seeds

Training prompts are `scenes-heldout-a`, judged prompts the first 20 a category of
`scenes-heldout-b`, each from the same fixed noises for base and LoRA. The reward is `scenes-clip`;
the verifier only judges. Results go to `--out` as JSON, so that seeds may run side by side.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from scipy.stats import bootstrap

import align
from align import scenes

NOISES, PER_CATEGORY = 4, 20


def prompts_of(name: str, per_category: int) -> list[str]:
    chosen: dict[str, list[str]] = {}
    for prompt in scenes.prompt_set(name):
        prompts = chosen.setdefault(scenes.category(prompt), [])
        if len(prompts) < per_category:
            prompts.append(prompt)
    return [prompt for prompts in chosen.values() for prompt in prompts]


@torch.no_grad()
def judge(pipe, prompts: list[str], noises: int, steps: int, guidance: float) -> np.ndarray:
    """Verifier exact (prompt, noise); noise j of prompt i is seeded with 1000 i + j."""
    reward = align.load_reward("scenes-clip")
    rows, scores, partials = [], [], []
    for i in range(0, len(prompts), 5):
        part = [prompt for prompt in prompts[i : i + 5] for _ in range(noises)]
        seeds = [1000 * (i + k // noises) + k % noises for k in range(len(part))]
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        images = align.generate(
            pipe, part, generator=generators, num_inference_steps=steps, guidance_scale=guidance
        )
        exact, partial = scenes.verify(part, images)
        rows.append(exact.view(-1, noises).double())
        partials.append(partial)
        scores.append(reward(images, part))
    exact = torch.cat(rows).numpy()
    print(
        f"exact {100 * exact.mean():.2f} %, partial {100 * torch.cat(partials).mean():.2f} %, "
        f"reward {torch.cat(scores).mean():.4f}",
        flush=True,
    )
    return exact


def save(path: Path, exact: np.ndarray, **facts) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**facts, "exact": exact.tolist()}))


def sweep(args: argparse.Namespace) -> None:
    prompts = prompts_of("scenes-heldout-a", 10)
    pipe = align.load_pipeline("embedded/scenes")
    for steps in (10, 25):
        for guidance in (1.5, 2.5, 4.0, 6.0):
            print(f"{steps} steps, guidance {guidance}: ", end="")
            judge(pipe, prompts, 2, steps, guidance)


def base(args: argparse.Namespace) -> None:
    prompts = prompts_of("scenes-heldout-b", PER_CATEGORY)
    pipe = align.load_pipeline("embedded/scenes")
    exact = judge(pipe, prompts, NOISES, args.num_inference_steps, args.guidance_scale)
    save(args.out / "base.json", exact, prompts=prompts, **settings(args))


def settings(args: argparse.Namespace) -> dict:
    return {"steps": args.num_inference_steps, "guidance": args.guidance_scale}


def lora(args: argparse.Namespace) -> None:
    result = align.train(
        align.TrainConfig(
            model="embedded/scenes", reward=args.reward, prompts="scenes-heldout-a",
            preset=args.preset, max_minutes=args.minutes, seed=args.seed, tracker="none",
            out=str(args.out / f"seed-{args.seed}"), overwrite=True,
        )
    )  # fmt: skip
    seconds = sum(record["seconds"] for record in result.metrics)
    print(f"seed {args.seed}: {result.steps} updates, {seconds / 60:.1f} min", flush=True)
    judged = "scenes-heldout-a" if args.pilot else "scenes-heldout-b"
    prompts = prompts_of(judged, PER_CATEGORY)
    pipe = align.load_pipeline("embedded/scenes", lora=[str(result.out)])
    exact = judge(pipe, prompts, NOISES, args.num_inference_steps, args.guidance_scale)
    if not args.pilot:
        facts = {"updates": result.steps, "minutes": seconds / 60, **settings(args)}
        save(args.out / f"seed-{args.seed}.json", exact, prompts=prompts, **facts)


def report(args: argparse.Namespace) -> None:
    """Gains paired over prompts and noises; intervals by resampling prompts."""
    before = json.loads((args.out / "base.json").read_text())
    reference = np.array(before["exact"])
    categories = np.array([scenes.category(prompt) for prompt in before["prompts"]])
    gains = []
    print("| seed | minutes | base % | LoRA % | gain (points) |\n|---|---|---|---|---|")
    for path in sorted(args.out.glob("seed-*.json")):
        run = json.loads(path.read_text())
        if any(run[key] != before[key] for key in ("steps", "guidance", "prompts")):
            raise ValueError(f"{path} was judged under other settings than base.json")
        exact = np.array(run["exact"])
        gains.append((exact - reference).mean(1))
        figures = f"{100 * reference.mean():.1f} | {100 * exact.mean():.1f}"
        print(f"| {path.stem[5:]} | {run['minutes']:.1f} | {figures} | {interval(gains[-1])} |")
    together = np.mean(gains, axis=0)
    print(f"| all | | {100 * reference.mean():.1f} | | {interval(together)} |")
    for category in scenes.CATEGORIES:
        print(f"  {category}: {interval(together[categories == category])}")


def interval(gain: np.ndarray) -> str:
    if gain.std() == 0:
        return f"{100 * gain.mean():+.1f}"
    ci = bootstrap((gain,), np.mean, method="percentile", rng=0).confidence_interval
    return f"{100 * gain.mean():+.1f} ({100 * ci.low:+.1f} to {100 * ci.high:+.1f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("command", choices=("sweep", "base", "lora", "report"))
    parser.add_argument("--out", type=Path, default=Path("work/alignprop-gain"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--reward", default="scenes-clip")
    parser.add_argument("--preset", default="embedded")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--num-inference-steps", type=int, default=20)
    parser.add_argument("--guidance-scale", type=float, default=4.5)
    parser.add_argument("--pilot", action="store_true", help="judge on half a, keep no figures")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    {"sweep": sweep, "base": base, "lora": lora, "report": report}[args.command](args)


if __name__ == "__main__":
    main()
