"""One AlignProp update by `align train` against TRL's AlignPropTrainer, alternating in one run.

    python scripts/bench/trl.py --trl-python trl-env/bin/python --updates 20

TRL removed its trainer, so it runs in an environment of its own, made once by

    python3 -m venv trl-env
    trl-env/bin/pip install torch==2.13.0 trl==0.12.2 diffusers==0.31.0 transformers==4.46.3 \\
        accelerate==1.1.1 peft==0.13.2 "numpy<2.3" "huggingface_hub<0.27" jaxtyping scipy

Both sides: `embedded/scenes`, the reward `scenes-clip`, the same prompts, float32, AdamW and a LoRA
of rank 4 on the CPU. Each side is a process of its own that waits while the other one works. TRL
draws its window within the denoising loop, so the kept steps have gaps; with `--window random`
each of its draws is made known here, and our side keeps the very same steps (`sparse:I,J,K`).

Settings of our side: `fastest` (no checkpointing), `checkpointing` (as TRL's default has it) and
`preset` (`--preset`, its own window and steps). Memory is the peak of all updates above the loaded
model; glibc is told to give back what is free before each of them.
"""

import argparse
import ctypes
import gc
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
GIB = 2**30
OURS = ("fastest", "checkpointing", "preset")
DDPO_BATCHES = 4  # that DDPO draws before it learns from them


def status(field: str) -> int:
    """Bytes of a line of /proc/self/status."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}")


def kept_steps(seed: int, steps: int, window: str) -> list[int]:
    """The steps that TRL's trainer keeps after `random.seed(seed)`: drawn anew at every step."""
    if window != "random":
        return list(range(steps - int(window), steps))
    draws = random.Random(seed)
    return [i for i in range(steps) if i >= draws.randint(0, steps)]


def seed_of(args: argparse.Namespace, update: int) -> int:
    """A seed whose window keeps at least one step, which TRL's rule does not promise."""
    seed = 1000 * update
    while not kept_steps(seed, args.steps, args.window):
        seed += 1
    return seed


def trl_parts(args: argparse.Namespace):
    """What both of TRL's trainers take: reward, prompts, model; and the rewards that were given."""
    sys.path.insert(0, str(ROOT))
    import torch
    from trl import DefaultDDPOStableDiffusionPipeline

    from align.rewards import jpeg, scenes_clip

    torch.set_num_threads(args.threads)
    reward = jpeg.load(None, "cpu")
    if args.reward == "scenes-clip":
        reward = scenes_clip.load(None, "cpu").eval().requires_grad_(False)
    rewards, order = [], random.Random(0)

    def score(images, prompts, metadata):
        scores = reward(images.float(), list(prompts))
        rewards.append(float(scores.mean()))
        return scores, {}

    pipe = DefaultDDPOStableDiffusionPipeline(str(ROOT / "align" / "embedded" / "scenes"))
    return score, lambda: (order.choice(args.prompts), {}), pipe, rewards


def trl_config(args: argparse.Namespace) -> dict:
    """The settings that both of TRL's trainers have by the same name."""
    return {
        "num_epochs": 1,
        "log_with": None,
        "mixed_precision": "no",
        "tracker_project_name": "bench",
        "project_kwargs": {"project_dir": args.folder},
        "sample_num_steps": args.steps,
        "sample_eta": args.eta,
        "sample_guidance_scale": args.guidance_scale,
        "train_batch_size": args.batch_size,
        "train_gradient_accumulation_steps": 1,
        "save_freq": 10**9,
    }


def saves(trainer):
    """A function that writes the trainer's LoRA to a folder, as diffusers reads it."""

    def save(folder: str) -> None:
        from diffusers.utils import convert_state_dict_to_diffusers
        from peft.utils import get_peft_model_state_dict

        pipe = trainer.sd_pipeline.sd_pipeline
        layers = convert_state_dict_to_diffusers(get_peft_model_state_dict(pipe.unet))
        pipe.save_lora_weights(folder, unet_lora_layers=layers)

    return save


def trl_side(args: argparse.Namespace):
    """By TRL's trainer: a function from an update's number to its reward, and one that saves."""
    import numpy as np
    import torch
    from trl import AlignPropConfig, AlignPropTrainer

    score, prompt, pipe, rewards = trl_parts(args)
    fixed = 1 if args.window == "random" else int(args.window)
    config = AlignPropConfig(
        **trl_config(args),
        train_learning_rate=1e-3,
        truncated_backprop_rand=args.window == "random",
        truncated_backprop_timestep=args.steps - fixed,
        truncated_rand_backprop_minmax=(0, args.steps),
    )
    trainer = AlignPropTrainer(config, score, prompt, pipe)
    trainer.sd_pipeline.sd_pipeline.to(dtype=torch.float32)

    def update(number: int) -> float:
        random.seed(seed_of(args, number))
        np.random.seed(number)
        trainer.step(0, number)
        return rewards[-1]

    return update, saves(trainer)


def ddpo_side(args: argparse.Namespace):
    """By TRL's DDPOTrainer, an update being one of its epochs: four batches, four updates."""
    import numpy as np
    from trl import DDPOConfig, DDPOTrainer

    score, prompt, pipe, rewards = trl_parts(args)
    config = DDPOConfig(
        **trl_config(args),
        sample_batch_size=args.batch_size,
        sample_num_batches_per_epoch=DDPO_BATCHES,
        train_learning_rate=args.ddpo_learning_rate,
        per_prompt_stat_tracking=True,
        per_prompt_stat_tracking_buffer_size=32,
    )
    trainer = DDPOTrainer(config, score, prompt, pipe)

    def update(number: int) -> float:
        trainer.step(0, number)
        return float(np.mean(rewards[-DDPO_BATCHES:]))

    return update, saves(trainer)


def our_side(args: argparse.Namespace):
    """The same, by ours."""
    import torch

    from align.alignprop.session import open_session
    from align.alignprop.update import figures, losses
    from align.config.train import TrainConfig
    from align.config.windows import parse_window
    from align.models.lora import save_lora
    from align.training.optimizer import clip_and_step

    torch.set_num_threads(args.threads)
    prompts = Path(args.folder) / "prompts.txt"
    prompts.write_text("\n".join(args.prompts))
    settings = {
        "reward": args.reward,
        "prompts": str(prompts),
        "steps": 10**6,
        "batch_size": args.batch_size,
        "device": "cpu",
        "tracker": "none",
        "out": f"{args.folder}/run",
    }
    if args.side == "preset":
        settings |= {"preset": args.preset, **json.loads(args.settings)}
    else:
        settings |= {
            "num_inference_steps": args.steps,
            "guidance_scale": args.guidance_scale,
            "eta": args.eta,
            "learning_rate": 1e-3,
            "checkpointing": args.side == "checkpointing",
        }
    run = open_session(TrainConfig(**settings))

    def update(number: int) -> float:
        if args.side != "preset":
            kept = kept_steps(seed_of(args, number), args.steps, args.window)
            written = "sparse:" + ",".join(map(str, kept)) + ","
            run.sampler.window = parse_window(written, args.steps)
        parts = []
        run.optimizer.zero_grad()
        for part in losses(run, number):
            run.accelerator.backward(part.loss)
            parts.append(part)
        clip_and_step(run)
        return figures(run, parts)["reward"]

    return update, lambda folder: save_lora(run.pipe, folder)


def work(args: argparse.Namespace) -> None:
    """A side's process: an update for a number in its input, a LoRA for a folder; JSON answers."""
    args.prompts = json.loads(Path(args.prompt_file).read_text())
    with tempfile.TemporaryDirectory() as args.folder:
        sides = {"trl": trl_side, "ddpo": ddpo_side}
        update, save = sides.get(args.side, our_side)(args)
        gc.collect()
        loaded = status("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
        print("ready", flush=True)
        for line in sys.stdin:
            if not line.strip().isdigit():
                save(line.strip())
                print("{}", flush=True)
                continue
            ctypes.CDLL(None).malloc_trim(0)  # what the update before freed is not this one's
            started = time.perf_counter()
            reward = update(int(line))
            answer = {"seconds": time.perf_counter() - started, "reward": reward}
            answer["above_gib"] = (status("VmHWM") - loaded) / GIB
            print(json.dumps(answer), flush=True)


def start(side: str, python: str, prompt_file: str, options: list[str]) -> subprocess.Popen:
    """A side's process; -P keeps this folder, whose trl.py is no trl, off its path."""
    command = [python, "-P", "-W", "ignore", __file__, *options]
    command += ["--side", side, "--prompt-file", prompt_file]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    child = subprocess.Popen(command, **pipes)
    while (line := child.stdout.readline().strip()) != "ready":  # libraries print, too
        if not line and child.poll() is not None:
            raise RuntimeError(f"the process of {side} ended with status {child.returncode}")
    return child


def ask(child: subprocess.Popen, question: int | str) -> dict:
    """The answer to the number of an update, or to a folder where the LoRA is to be saved."""
    child.stdin.write(f"{question}\n")
    child.stdin.flush()
    while line := child.stdout.readline():
        if line.startswith("{"):
            return json.loads(line)
    raise RuntimeError(f"a process ended at {question}")


def compare(args: argparse.Namespace) -> None:
    import numpy as np

    from align.language.prompts import load_prompts

    sides, rounds = ["trl", *args.ours], {}
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(load_prompts(args.prompt_set).prompts[: args.prompt_count], file)
        file.flush()
        children = {
            side: start(
                side, args.trl_python if side == "trl" else sys.executable, file.name, sys.argv[1:]
            )
            for side in sides
        }
        try:
            for number in range(args.updates):
                for side in sides if number % 2 == 0 else sides[::-1]:
                    rounds.setdefault(side, []).append(ask(children[side], number))
                seconds = {side: round(rounds[side][-1]["seconds"], 2) for side in sides}
                print(f"update {number + 1}: seconds {seconds}", flush=True)
        finally:
            for child in children.values():
                child.stdin.close()
                child.wait()
    skipped = min(args.warmup, args.updates - 1)
    for side in sides:
        times = [answer["seconds"] for answer in rounds[side][skipped:]]
        pairs = zip(rounds["trl"][skipped:], rounds[side][skipped:], strict=True)
        ratio = np.median([theirs["seconds"] / ours["seconds"] for theirs, ours in pairs])
        memory = rounds[side][-1]["above_gib"]
        share = memory / rounds["trl"][-1]["above_gib"]
        print(
            f"{side:<14}{args.batch_size / np.median(times):7.2f} samples/s, "
            f"{ratio:.2f}x TRL's; {memory:.2f} GiB above the loaded model, {share:.2f}x TRL's"
        )
    print(json.dumps({"settings": vars(args), "rounds": rounds}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trl-python", help="Python of the environment with TRL 0.12.2")
    parser.add_argument("--ours", nargs="+", choices=OURS, default=["fastest", "checkpointing"])
    parser.add_argument("--preset", default="embedded")
    parser.add_argument("--settings", default="{}", help="JSON of settings beside the preset")
    parser.add_argument("--window", default="random", help="random, or a number of last steps")
    parser.add_argument("--updates", type=int, default=6)
    parser.add_argument("--warmup", type=int, default=1, help="updates that do not count")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--guidance-scale", type=float, default=5.0)
    # TRL's default is 1, with which DDIM takes the root of a negative rounding error in the first
    # step of a model of zero terminal SNR, such as this one.
    parser.add_argument("--eta", type=float, default=0.0)
    parser.add_argument("--prompt-set", default="scenes-color")
    parser.add_argument("--prompt-count", type=int, default=64)
    parser.add_argument("--reward", choices=["scenes-clip", "jpeg"], default="scenes-clip")
    parser.add_argument("--ddpo-learning-rate", type=float, default=3e-4)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--side", choices=["trl", "ddpo", *OURS], help=argparse.SUPPRESS)
    parser.add_argument("--prompt-file", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        work(args)
    elif args.trl_python is None:
        print("left out: name the Python of an environment with TRL 0.12.2 by --trl-python")
    else:
        compare(args)


if __name__ == "__main__":
    main()
