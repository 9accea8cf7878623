"""Peak memory of a training update, against the estimate of `align train --dry-run`.

    python scripts/bench/memory.py                        # embedded model: 10 and 50 steps, K = 1
    python scripts/bench/memory.py --architecture sd15    # real architecture, 512x512, once
    python scripts/bench/memory.py --architecture sdxl --dtype bfloat16 --size 512 --steps 1
    python scripts/bench/memory.py --estimates            # every architecture and card, no run
    python scripts/bench/memory.py --recipes              # the settings of docs/recipes, no run

Each measurement is a process of its own. The peak is the process's largest resident memory from
the loaded model on, less what the loaded model takes, so interpreter and libraries do not count.
Linux only: it reads and resets the kernel's high-water mark.
"""

import argparse
import ctypes
import dataclasses
import gc
import json
import subprocess
import sys
import tempfile
from pathlib import Path

GIB = 2**30
# docs/recipes: the architecture and what the command line sets.
RECIPES = {
    "sd15-hps-16gb": ("sd15", {"preset": "alignprop-hps", "memory": "16gb", "dtype": "float16"}),
    "sdxl-24gb": ("sdxl", {"preset": "draft-1", "memory": "24gb"}),
    "flux-24gb": (
        "flux-dev",
        {"preset": "draft-1", "memory": "24gb", "quantize": "4bit", "guidance_scale": 3.5,
         "scheduler": "FlowMatchEulerDiscreteScheduler",
         "num_inference_steps": 28},
    ),
    "z-image-turbo-24gb": (
        "z-image-turbo",
        {"preset": "draft-1", "memory": "24gb", "quantize": "4bit", "guidance_scale": 0.0,
         "scheduler": "FlowMatchEulerDiscreteScheduler",
         "num_inference_steps": 8},
    ),
    "flux2-klein-24gb": (
        "klein-4b",
        {"preset": "draft-1", "memory": "24gb", "guidance_scale": 0.0,
         "scheduler": "FlowMatchEulerDiscreteScheduler",
         "num_inference_steps": 4},
    ),
}  # fmt: skip
# Steps and guidance that a model is used with, where these are not the defaults of a training.
USED_WITH = {"z-image-turbo": (8, 0.0), "klein-4b": (4, 0.0), "klein-9b": (4, 0.0)}
USED_WITH |= {"qwen-image": (50, 4.0)}
HPS_WEIGHTS = 986_109_441  # of a ViT-H/14 CLIP, in float32


def status(field: str) -> int:
    """Bytes of a line of /proc/self/status."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}")


def settings(args: argparse.Namespace, steps: int, **changes):
    from align.config.train import TrainConfig

    values = {
        "model": "embedded/scenes",
        "prompts": "animals" if args.architecture else "scenes-color",
        "reward": "jpeg",
        "batch_size": args.batch_size,
        "num_inference_steps": steps,
        "guidance_scale": 7.5,
        "grad_window": "1",
        "device": "cpu",
        "dtype": args.dtype,
        "height": args.size,
        "width": args.size,
        "tracker": "none",
        "attention": "sdpa",
    }
    return TrainConfig(**values | changes)


def brightness(images, prompts):
    return images.square().mean((1, 2, 3))


def measure(args: argparse.Namespace, steps: int) -> dict:
    """In a process of its own: one update's peak above the loaded model, and its time."""
    import torch
    from architectures import with_random_weights

    from align.alignprop.session import open_session
    from align.alignprop.update import figures, losses
    from align.models.load import load_pipeline
    from align.training.loop import fit

    torch.set_num_threads(args.threads)
    if args.architecture:
        pipe = with_random_weights(args.architecture, getattr(torch, args.dtype))
    else:
        pipe = load_pipeline("embedded/scenes", device="cpu")
    with tempfile.TemporaryDirectory() as folder:
        config = settings(args, steps, out=f"{folder}/run")
        run = open_session(config, reward=brightness, pipe=pipe)
        run.sampler.embed(run.prompts.prompts[:64])  # encoding is no part of an update
        gc.collect()
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        loaded = status("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
        peaks = []
        record = fit(
            run, losses, figures, on_step=lambda record: peaks.append(status("VmHWM")) or True
        )
        (peak,) = peaks
        run.accelerator.end_training()
    return {
        "steps": steps,
        "loaded_gib": loaded / GIB,
        "peak_gib": peak / GIB,
        "above_gib": (peak - loaded) / GIB,
        "seconds": record["seconds"],
        "grad_norm": record["grad_norm"],
    }


def in_a_child(args: argparse.Namespace, steps: int) -> dict:
    command = [sys.executable, __file__, "--child", str(steps), *sys.argv[1:]]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"the run with {steps} steps failed: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def estimated(args: argparse.Namespace) -> dict[str, float]:
    """The estimate's parts in GiB."""
    from architectures import without_weights

    from align.alignprop.memory import Needs

    pipe = without_weights(args.architecture) if args.architecture else None
    config = settings(args, 50)
    return {k: v / GIB for k, v in Needs(config, pipe=pipe).estimate(config).parts.items()}


def print_estimates(names: list[str]) -> None:
    """What --memory chooses for these architectures and every card, and what it needs."""
    import torch
    from architectures import ARCHITECTURES, without_weights

    from align.alignprop import memory
    from align.config.train import TrainConfig

    for name in names or [name for name in ARCHITECTURES if name != "sd15-half"]:
        pipe = without_weights(name)
        parts = [p for p in pipe.components.values() if isinstance(p, torch.nn.Module)]
        count = sum(p.numel() for part in parts for p in part.parameters())
        print(f"{name}: {count / 1e9:.2f} B parameters in all parts", flush=True)
        steps, scale = USED_WITH.get(name, (10, 3.0))
        start = TrainConfig(
            model=name,
            prompts="animals",
            dry_run=True,
            memory="12gb",
            batch_size=4,
            num_inference_steps=steps,
            guidance_scale=scale,
        )
        needs = memory.Needs(start, pipe=pipe)
        for card in ("12gb", "16gb", "24gb"):
            given = dataclasses.replace(start, memory=card)
            try:
                config, estimate = memory.plan(given, needs=needs)
            except MemoryError as error:
                print(f"  {card}: {error}", flush=True)
                continue
            changed = [
                f"{field}={getattr(config, field)}"
                for field in memory.FIELDS
                if getattr(config, field) != getattr(given, field)
            ]
            total = f"{estimate.total / GIB:.1f} GiB"
            print(f"  {card}: {total}; {', '.join(changed) or 'as given'}", flush=True)


def print_recipes() -> None:
    """The estimate of each recipe with HPS, by part, and what --memory changes for it."""
    import torch
    from architectures import without_weights

    from align.alignprop import memory
    from align.config.train import TrainConfig

    hps = torch.nn.Linear(HPS_WEIGHTS, 1, bias=False, device="meta")
    for name, (architecture, changes) in RECIPES.items():
        given = TrainConfig(model=architecture, prompts="animals", dry_run=True, **changes)
        needs = memory.Needs(given, reward=hps, pipe=without_weights(architecture))
        print(f"== {name}\n{memory.plan_text(given, *memory.plan(given, needs=needs))}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--architecture",
        choices=[
            *("sd15", "sd15-half", "sdxl", "sd3-medium", "flux-dev"),
            *("z-image-turbo", "klein-4b", "klein-9b", "qwen-image"),
        ],
    )
    parser.add_argument("--steps", type=int, nargs="+", help="denoising steps of each measurement")
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--size", type=int, help="pixels a side (default: the model's own)")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--estimates", action="store_true", help="plan only, for every card")
    parser.add_argument("--recipes", action="store_true", help="plan the recipes only")
    parser.add_argument("--child", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(measure(args, args.child)))
        return
    if args.estimates:
        print_estimates([args.architecture] if args.architecture else [])
        return
    if args.recipes:
        print_recipes()
        return
    parts = estimated(args)
    print(f"estimate above the loaded model: {parts['activations']:.3f} GiB of activations")
    rows = []
    for steps in args.steps or ([2] if args.architecture else [10, 50]):
        row = in_a_child(args, steps)
        rows.append(row)
        print(
            f"{steps:>3} steps: {row['above_gib']:.3f} GiB above the loaded model "
            f"({row['loaded_gib']:.2f}), peak {row['peak_gib']:.2f}, {row['seconds']:.1f} s; "
            f"estimate / measured {parts['activations'] / row['above_gib']:.3f}",
            flush=True,
        )
    if len(rows) > 1:
        growth = rows[-1]["above_gib"] / rows[0]["above_gib"] - 1
        print(f"{rows[0]['steps']} -> {rows[-1]['steps']} steps: {growth:+.1%} (limit +5 %)")
    print(json.dumps({"estimate": parts, "measured": rows}))


if __name__ == "__main__":
    main()
