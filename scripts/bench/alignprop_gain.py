"""Does a LoRA trained to a reward make the pictures right? Judged by the verifier.

    python scripts/bench/alignprop_gain.py sweep             # base: guidance and steps, on half a
    python scripts/bench/alignprop_gain.py base              # base on half b
    python scripts/bench/alignprop_gain.py lora --seed 0     # train on half a, judge on half b
    python scripts/bench/alignprop_gain.py plain --threads 2 # control: as long, by denoising alone
    python scripts/bench/alignprop_gain.py report            # paired gains over all seeds

Training prompts are `scenes-heldout-a`, judged prompts the first 20 a category of
`scenes-heldout-b`, each from the same fixed noises for base and LoRA. The reward is the
preset's unless `--reward` says otherwise; the verifier only judges. Results go to `--out` as JSON,
so that seeds may run side by side. `--weight` is that of the LoRA where it is judged.
"""

import argparse
import itertools
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
from judged import MEASURES, REWARDS, interval, judge, save, with_error

import align
from align import scenes
from align.config.presets import PRESETS
from align.diffusion.denoisers import make_denoiser
from align.models.lora import add_lora, save_lora
from align.models.lora_files import mix
from align.scenes.dataset import stream

SEEDS_APART = 1000  # the rounds of seed 0 and 1 differ


def measured(args: argparse.Namespace, pipe, name: str, steps: int, guidance: float) -> dict:
    """Every measure of pictures of the set `name`, and the prompts."""
    prompts = scenes.prompt_set(name, args.per_category)
    found = judge(pipe, prompts, args.noises, steps, guidance)
    shares = [f"{measure} {100 * found[measure].mean():.2f} %" for measure in ("exact", "partial")]
    rewards = [f"{reward} {found[reward].mean():.4f}" for reward in REWARDS]
    print(", ".join([*shares, *rewards]), flush=True)
    return {"prompts": prompts, **found}


def sweep(args: argparse.Namespace) -> None:
    pipe = align.load_pipeline("embedded/scenes")
    for steps in args.sweep_steps:
        for guidance in args.sweep_guidance:
            print(f"{steps} steps, guidance {guidance}: ", end="")
            measured(args, pipe, "scenes-heldout-a", steps, guidance)


def base(args: argparse.Namespace) -> None:
    pipe = align.load_pipeline("embedded/scenes")
    found = measured(args, pipe, judged_set(args), *settings(args).values())
    save(args.out / "base.json", **found, **settings(args))


def settings(args: argparse.Namespace) -> dict:
    return {"steps": args.num_inference_steps, "guidance": args.guidance_scale}


def train_lora(args: argparse.Namespace, out: Path) -> list[dict]:
    """What a user types, with a process for each core; returns the metrics of all rounds.

    A round starts from the model with the LoRAs of the rounds before merged into it; `out/lora`
    holds the sum of all.
    """
    model, metrics = "embedded/scenes", []
    runs = [out / f"round-{number}" if args.rounds > 1 else out for number in range(args.rounds)]
    for number, run in enumerate(runs):
        if number:
            merged = out / f"model-{number}"
            align_command("lora", "merge", f"{runs[number - 1]}", "--model", model,
                          "--out", merged, "--overwrite")  # fmt: skip
            model = merged
        reward = ["--reward", args.reward] if args.reward else []
        align_command(
            "train", "--preset", args.preset, "--model", model, *reward,
            "--prompts", "scenes-heldout-a", "--max-minutes", args.minutes / args.rounds,
            "--seed", args.seed + SEEDS_APART * number, "--tracker", "none",
            "--out", run, "--overwrite", *args.options, processes=args.processes,
        )  # fmt: skip
        metrics += [json.loads(line) for line in (run / "metrics.jsonl").open()]
    if args.rounds > 1:
        mix([f"{run}" for run in runs], out / "lora")
    return metrics


def align_command(*words, processes: int = 1) -> None:
    command = [sys.executable, "-m", "align"]
    if processes > 1:
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone",
                   "--nproc-per-node", str(processes), "-m", "align"]  # fmt: skip
    environment = {**os.environ, "ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1"}
    subprocess.run([*command, *map(str, words)], check=True, env=environment)


def lora(args: argparse.Namespace) -> None:
    out = args.out / f"seed-{args.seed}"
    facts_file = out / "facts.json"
    if not (out / "lora").exists() or not args.judge_only:
        metrics = train_lora(args, out)
        minutes = sum(record.get("seconds", 0.0) for record in metrics) / 60
        facts = {"updates": sum("seconds" in record for record in metrics), "minutes": minutes}
        facts_file.write_text(json.dumps(facts))
    if args.train_only:
        return
    facts = json.loads(facts_file.read_text())
    print(f"seed {args.seed}: {facts['updates']} updates, {facts['minutes']:.1f} min", flush=True)
    pipe = align.load_pipeline("embedded/scenes", lora=[f"{out / 'lora'}={args.weight:g}"])
    found = measured(args, pipe, judged_set(args), *settings(args).values())
    facts |= {"weight": args.weight, **settings(args)}
    save(args.out / f"seed-{args.seed}.json", **found, **facts)


def plain(args: argparse.Namespace) -> None:
    """A LoRA of the same size and minutes that learns pictures of seen prompts, no reward."""
    pipe, preset = align.load_pipeline("embedded/scenes"), PRESETS[args.preset]
    pictures, rng = stream(args.seed), torch.Generator().manual_seed(args.seed)
    parameters = add_lora(pipe, preset["lora_rank"], targets=preset.get("lora_targets"))
    optimizer = torch.optim.AdamW(parameters, lr=args.plain_learning_rate, weight_decay=1e-4)
    updates, start = 0, time.monotonic()
    while (past := (time.monotonic() - start) / 60 / args.minutes) < 1:
        optimizer.param_groups[0]["lr"] = args.plain_learning_rate * (1 - past)
        loss = denoising_loss(pipe, list(itertools.islice(pictures, preset["batch_size"])), rng)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        updates += 1
    print(f"plain denoising: {updates} updates, {args.minutes:g} min", flush=True)
    save_lora(pipe, args.out / "plain")
    if args.train_only:
        return
    found = measured(args, pipe, judged_set(args), *settings(args).values())
    facts = {"updates": updates, "minutes": args.minutes, **settings(args)}
    save(args.out / "plain.json", **found, **facts)


def denoising_loss(pipe, batch: list, rng: torch.Generator) -> torch.Tensor:
    """Mean squared error of the model's output; one prompt in ten is left out, for guidance."""
    dropped = (torch.rand(len(batch), generator=rng) < 0.1).tolist()
    said = ["" if drop else prompt for (prompt, _), drop in zip(batch, dropped, strict=True)]
    images = np.stack([scenes.render(scene) for _, scene in batch])
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1
    with torch.no_grad():
        clean = pipe.vae.encode(pixels).latent_dist.mean * pipe.vae.config.scaling_factor
    noise = torch.randn(clean.shape, generator=rng)
    times = torch.randint(len(pipe.scheduler.alphas_cumprod), (len(batch),), generator=rng)
    denoise = make_denoiser(pipe, said, guidance_scale=1.0)
    output = denoise(pipe.scheduler.add_noise(clean, noise, times), times)
    return (output - pipe.scheduler.get_velocity(clean, noise, times)).square().mean()


def judged_set(args: argparse.Namespace) -> str:
    return "scenes-heldout-a" if args.pilot else "scenes-heldout-b"


def report(args: argparse.Namespace) -> None:
    """Gains paired over prompts and noises; intervals by resampling prompts."""
    before = json.loads((args.out / "base.json").read_text())
    categories = np.array([scenes.category(prompt) for prompt in before["prompts"]])
    level = 100 * np.mean(before["exact"])
    print(f"base: {before['steps']} steps, guidance {before['guidance']}, exact {level:.1f} %")
    head = ["seed", "minutes", "exact %", "gain (points)", "facts", *REWARDS, "bytes", "diversity"]
    print(f"| {' | '.join(head)} |\n|{' --- |' * len(head)}")
    runs = {
        path.stem: json.loads(path.read_text())
        for path in [*sorted(args.out.glob("seed-*.json")), args.out / "plain.json"]
        if path.exists()
    }
    if not set(runs) - {"plain"}:
        raise SystemExit("no seed has been judged; run `lora` first")
    gains = []
    for name, run in runs.items():
        if run["prompts"] != before["prompts"]:
            raise ValueError(f"{name} was judged on other prompts than base.json")
        rises = {
            measure: (np.array(run[measure]) - np.array(before[measure])).mean(1)
            for measure in MEASURES
        }
        others = [with_error(rises[reward]) for reward in REWARDS]
        size = 100 * rises["bytes"].mean() / np.mean(before["bytes"])
        share = np.mean(run["diversity"]) / np.mean(before["diversity"])
        print(
            f"| {name} | {run['minutes']:.1f} | {100 * np.mean(run['exact']):.1f} "
            f"| {interval(rises['exact'])} | {interval(rises['partial'])} | {' | '.join(others)} "
            f"| {size:+.1f} % | {share:.2f} |"
        )
        if name == "plain":
            together = np.mean(gains, axis=0)
            print(f"LoRAs above plain denoising: {interval(together - rises['exact'])}")
        else:
            gains.append(rises["exact"])
    together = np.mean(gains, axis=0)
    print(f"all: {interval(together)}")
    for category in scenes.CATEGORIES:
        print(f"  {category}: {interval(together[categories == category])}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("command", choices=("sweep", "base", "lora", "plain", "report"))
    parser.add_argument("--out", type=Path, default=Path("work/alignprop-gain"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--reward", help="the preset's unless given")
    parser.add_argument("--preset", default="embedded")
    parser.add_argument("--weight", type=float, default=1.0, help="of the LoRA where it is judged")
    parser.add_argument("--minutes", type=float, default=10.0, help="of all rounds together")
    parser.add_argument("--rounds", type=int, default=1, help="each from the model merged so far")
    parser.add_argument("--num-inference-steps", type=int, default=20)
    parser.add_argument("--guidance-scale", type=float, default=4.5)
    parser.add_argument("--sweep-steps", type=int, nargs="+", default=[10, 25])
    parser.add_argument("--sweep-guidance", type=float, nargs="+", default=[2.5, 4.0, 6.0, 8.0])
    parser.add_argument("--per-category", type=int, default=20, help="prompts")
    parser.add_argument("--noises", type=int, default=4, help="of each prompt")
    parser.add_argument("--plain-learning-rate", type=float, default=1e-3)
    parser.add_argument("--processes", type=int, default=2, help="of the training")
    parser.add_argument("--judge-only", action="store_true", help="take the LoRA that is there")
    parser.add_argument("--train-only", action="store_true", help="judge it later")
    parser.add_argument("--options", nargs=argparse.REMAINDER, default=[], help="of align train")
    parser.add_argument("--pilot", action="store_true", help="judge on half a")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    commands = {"sweep": sweep, "base": base, "lora": lora, "plain": plain, "report": report}
    commands[args.command](args)


if __name__ == "__main__":
    main()
