"""Does aligning NAR make its pictures right? Judged by the verifier on scenes-heldout-b.

    python scripts/bench/nar_align.py base                       # before, both ways of sampling
    python scripts/bench/nar_align.py align --seed 0 --minutes 29 --options --steps 280 \\
        --learning-rate 1e-3 --lr-schedule linear --batch-size 64 --sample-every 0
    python scripts/bench/nar_align.py report                     # paired gains over all seeds

The same with seeds 1 and 2. Trained on `scenes-heldout-a` by the learned rewards, judged on the
first 20 prompts a category of `scenes-heldout-b`, each drawn from the same fixed seeds before and
after. Base and aligned model are drawn as the policy that was trained (what alignment changed) and
by the model's own settings, which are guided (what a user of the base has). The verifier only
judges.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from judged import interval, save

from align import scenes
from align.nar.load import load_nar_pipeline
from align.training.judge import diversity

JUDGED = "scenes-heldout-b"
REWARD = "z(scenes-detector=1,scenes-clip=0.5)"
SETTINGS = ("policy", "own")


@torch.no_grad()
def judge(pipe, prompts: tuple[str, ...], noises: int) -> tuple[np.ndarray, float]:
    """Verifier exact (prompt, noise), and the diversity; noise j of prompt i is 1000 i + j."""
    exact, images = [], []
    for i in range(0, len(prompts), 4):
        part = [prompt for prompt in prompts[i : i + 4] for _ in range(noises)]
        seeds = [1000 * (i + k // noises) + k % noises for k in range(len(part))]
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        drawn = pipe(part, generator=generators, output_type="pt").images
        exact.append(scenes.verify(part, drawn)[0].view(-1, noises).double())
        images.append(drawn.unflatten(0, (-1, noises)))
    found = torch.cat(exact).numpy()
    varied = diversity(torch.cat(images)) if noises > 1 else float("nan")
    print(f"exact {100 * found.mean():.2f} %, diversity {varied:.4f}", flush=True)
    return found, varied


def base(args: argparse.Namespace) -> None:
    prompts = scenes.prompt_set(JUDGED, args.per_category)
    pipe = load_nar_pipeline(args.model, "cpu")
    own = pipe.scheduler.config
    policies = {
        "own": {},
        "policy": {
            "guidance_scale": args.guidance_scale, "temperature": args.temperature,
            "top_k": 0, "top_p": 1.0,
        },
    }  # fmt: skip
    for name, changes in policies.items():
        pipe.scheduler = type(pipe.scheduler).from_config(own, **changes)
        print(f"base, {name} settings: ", end="")
        exact, varied = judge(pipe, prompts, args.noises)
        save(args.out / f"base-{name}.json", exact=exact, prompts=prompts, diversity=varied)


def align_one(args: argparse.Namespace, out: Path) -> None:
    """What a user types, with a process for each core."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node",
               str(args.processes), "-m", "align", "nar", "align", "--model", args.model,
               "--method", args.method, "--reward", args.reward, "--prompts", "scenes-heldout-a",
               "--guidance-scale", str(args.guidance_scale), "--temperature",
               str(args.temperature), "--max-minutes", str(args.minutes), "--steps", "100000",
               "--seed", str(args.seed), "--tracker", "none", "--out", str(out), "--overwrite",
               *args.options]  # fmt: skip
    environment = {**os.environ, "ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1"}
    subprocess.run(command, check=True, env=environment)


def align(args: argparse.Namespace) -> None:
    out = args.out / f"seed-{args.seed}"
    if not (out / "lora").exists() or not args.judge_only:
        align_one(args, out)
    metrics = [json.loads(line) for line in (out / "metrics.jsonl").open()]
    minutes = sum(record["seconds"] for record in metrics) / 60
    kl = [record["kl"] for record in metrics[-5:] if "kl" in record]
    kl = sum(kl) / len(kl) if kl else float("nan")
    rewards = [round(record["reward"], 3) for record in (metrics[0], metrics[-1])]
    print(f"seed {args.seed}: {metrics[-1]['step']} updates, {minutes:.1f} min, reward {rewards}")
    judged = "scenes-heldout-a" if args.pilot else JUDGED
    prompts = scenes.prompt_set(judged, args.per_category)
    pipe = load_nar_pipeline(args.model, "cpu", lora=str(out))  # draws as the policy
    facts = {"updates": metrics[-1]["step"], "minutes": minutes, "kl": kl}
    for name in SETTINGS:
        if name == "own":
            pipe.scheduler = load_nar_pipeline(args.model, "cpu").scheduler
        exact, varied = judge(pipe, prompts, args.noises)
        if not args.pilot:
            save(args.out / f"seed-{args.seed}-{name}.json", exact=exact, prompts=prompts,
                 diversity=varied, **facts)  # fmt: skip


def report(args: argparse.Namespace) -> None:
    """Gains paired over prompts and seeds; intervals by resampling prompts."""
    for after, name in (("policy", "policy"), ("policy", "own"), ("own", "own")):
        found = args.out.glob(f"seed-*-{after}.json")
        runs = {path.stem.split("-")[1]: json.loads(path.read_text()) for path in found}
        before = json.loads((args.out / f"base-{name}.json").read_text())
        reference = np.array(before["exact"])
        level, varied = 100 * reference.mean(), before["diversity"]
        print(f"aligned by {after} settings, base by {name} settings ({level:.1f} %, diversity "
              f"{varied:.4f})")  # fmt: skip
        print("| seed | updates | minutes | KL, nats/token | diversity | % | gain (points) |")
        print("|---|---|---|---|---|---|---|")
        gains = []
        for seed, run in sorted(runs.items()):
            if run["prompts"] != before["prompts"]:
                raise ValueError(f"seed {seed} was judged on other prompts than the base")
            exact = np.array(run["exact"])
            gains.append((exact - reference).mean(1))
            facts = f"{run['updates']} | {run['minutes']:.1f} | {run['kl']:.4f}"
            figures = f"{run['diversity']:.4f} | {100 * exact.mean():.1f} | {interval(gains[-1])}"
            print(f"| {seed} | {facts} | {figures} |")
        if gains:
            together = np.mean(gains, axis=0)
            print(f"| all | | | | | | {interval(together)} |")
            categories = np.array([scenes.category(prompt) for prompt in before["prompts"]])
            for category in scenes.CATEGORIES:
                print(f"  {category}: {interval(together[categories == category])}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("command", choices=("base", "align", "report"))
    parser.add_argument("--out", type=Path, default=Path("work/nar-align"))
    parser.add_argument("--model", default="embedded/nar-scenes")
    parser.add_argument("--method", default="grpo", choices=("grpo", "dpo"))
    parser.add_argument("--reward", default=REWARD)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--guidance-scale", type=float, default=1.0, help="of the policy")
    parser.add_argument("--temperature", type=float, default=1.0, help="of the policy")
    parser.add_argument("--per-category", type=int, default=20, help="prompts")
    parser.add_argument("--noises", type=int, default=4, help="of each prompt")
    parser.add_argument("--processes", type=int, default=2, help="of the training")
    parser.add_argument("--judge-only", action="store_true", help="take the LoRA that is there")
    parser.add_argument("--pilot", action="store_true", help="judge on half a, keep no figures")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--options", nargs=argparse.REMAINDER, default=[], help="of nar align")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    {"base": base, "align": align, "report": report}[args.command](args)


if __name__ == "__main__":
    main()
