"""Does a LoRA trained by `jpeg` make real JPEG files smaller, and are the pictures still right?

    python scripts/bench/jpeg_lora.py                       # trains, then judges
    python scripts/bench/jpeg_lora.py --lora runs/mine      # judges a LoRA that there is
    python scripts/bench/jpeg_lora.py --reward jpeg         # by the bytes alone
    python scripts/bench/jpeg_lora.py --true-pictures 32    # how small right pictures can be

The training knows an estimate of the size only; here Pillow writes the files (quality 95). Base and
LoRA draw the same unseen prompts from the same noises. A picture without its objects is small too:
so bytes are also given above those of a blank picture, beside the share of pictures that the
verifier finds exactly as asked, the number of objects that it reads in one, and the share of
pictures in which it reads fewer than the prompt asks for.
"""

import argparse
import io
import json
import random
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from scipy.stats import bootstrap
from torch import Tensor

import align
from align import scenes
from align.runs.folder import to_pil

SETTINGS = {
    "preset": "embedded",
    "reward": "jpeg=1,scenes-clip=0.5",
    "prompts": "scenes-heldout-a",
    "steps": 40,
    "sample_every": 0,
    "checkpoint_every": 0,
    "tracker": "none",
}
QUALITY = 95


def file_size(picture: Image.Image) -> int:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=QUALITY)
    return buffer.tell()


@torch.no_grad()
def draw(pipe, prompts: list[str], steps: int, guidance: float) -> Tensor:
    """One picture a prompt; picture i from the noise of seed i."""
    parts = []
    for start in range(0, len(prompts), 10):
        part = prompts[start : start + 10]
        settings = {"num_inference_steps": steps, "guidance_scale": guidance}
        parts.append(align.generate(pipe, part, seed=start, **settings))
    return torch.cat(parts)


def measure(prompts: list[str], images: Tensor) -> dict[str, np.ndarray]:
    """By measure, one value a picture."""
    exact, partial = scenes.verify(prompts, images)
    objects = np.array([len(scenes.read(image.numpy())) for image in images], float)
    asked = np.array([len(scenes.parse(prompt).objects) for prompt in prompts])
    return {
        "bytes": np.array([file_size(to_pil(image)) for image in images], float),
        "exact": 100 * exact.double().numpy(),
        "partial": 100 * partial.double().numpy(),
        "objects": objects,
        "fewer than asked": 100.0 * (objects < asked),
    }


@torch.no_grad()
def true_pictures(pipe, prompts: list[str], count: int) -> None:
    """Sizes of `count` true pictures a prompt, as the autoencoder draws them."""
    rng, every, least = random.Random(0), [], []
    for prompt in prompts:
        placed = [scenes.layout(scenes.parse(prompt), rng) for _ in range(count)]
        pixels = np.stack([scenes.render(scene) for scene in placed])
        latents = pipe.vae.encode(torch.from_numpy(pixels).permute(0, 3, 1, 2) / 127.5 - 1)
        images = (pipe.vae.decode(latents.latent_dist.mean).sample / 2 + 0.5).clamp(0, 1)
        found = measure([prompt] * count, images)
        every.append([found["bytes"].mean(), found["exact"].mean()])
        smallest = found["bytes"].argmin()
        least.append([found["bytes"][smallest], found["exact"][smallest]])
    print(f"{len(prompts)} prompts, {count} true pictures of each, encoded and decoded")
    for name, rows in (("all", every), ("the smallest of each prompt", least)):
        size, exact = np.mean(rows, axis=0)
        print(f"{name}: {size:.0f} bytes, {exact:.1f} % exact")


def change(before: np.ndarray, after: np.ndarray, noises: int) -> str:
    """Mean difference with its 95 % interval, by resampling prompts."""
    rises = (after - before).reshape(-1, noises).mean(1)
    if rises.std() == 0:
        return f"{rises.mean():+.2f}"
    ci = bootstrap((rises,), np.mean, method="percentile", rng=0).confidence_interval
    return f"{rises.mean():+.2f} ({ci.low:+.2f} to {ci.high:+.2f})"


def report(before: dict[str, np.ndarray], after: dict[str, np.ndarray], noises: int) -> None:
    blank = file_size(Image.new("RGB", (64, 64), (235, 235, 235)))
    before["bytes above blank"], after["bytes above blank"] = (
        side["bytes"] - blank for side in (before, after)
    )
    count = len(before["bytes"])
    print(f"{count // noises} prompts, {count} pictures; a blank picture has {blank} bytes\n")
    print("| measure | base | LoRA | change (95 % interval) |\n| --- | --- | --- | --- |")
    for name in ("bytes", "bytes above blank", "exact", "partial", "objects", "fewer than asked"):
        one, two = before[name], after[name]
        share = f" = {100 * (two.mean() / one.mean() - 1):+.1f} %" if "bytes" in name else ""
        row = [f"{one.mean():.2f}", f"{two.mean():.2f}", change(one, two, noises) + share]
        print("| " + " | ".join([name, *row]) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="embedded/scenes")
    parser.add_argument("--lora", help="judge this one instead of training one")
    parser.add_argument("--reward", default=SETTINGS["reward"])
    parser.add_argument("--steps", type=int, default=SETTINGS["steps"], help="updates")
    parser.add_argument("--settings", default="{}", help="JSON of further settings of align train")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--prompts", default="scenes-heldout-b", help="the judged ones")
    parser.add_argument("--per-category", type=int, default=10)
    parser.add_argument("--noises", type=int, default=2, help="pictures a prompt")
    parser.add_argument("--num-inference-steps", type=int, nargs="+", default=[8, 25])
    parser.add_argument("--guidance-scale", type=float, default=4.0)
    parser.add_argument("--true-pictures", type=int, help="this many a prompt, and no LoRA")
    args = parser.parse_args()
    prompts = [
        p for p in scenes.prompt_set(args.prompts, args.per_category) for _ in range(args.noises)
    ]
    pipe = align.load_pipeline(args.model)
    if args.true_pictures:
        true_pictures(pipe, prompts[:: args.noises], args.true_pictures)
        return
    before = {n: draw(pipe, prompts, n, args.guidance_scale) for n in args.num_inference_steps}
    with tempfile.TemporaryDirectory() as folder:
        lora = args.lora
        if lora is None:
            changed = {"reward": args.reward, "steps": args.steps, **json.loads(args.settings)}
            config = align.TrainConfig(
                model=args.model,
                seed=args.seed,
                out=str(Path(folder) / "run"),
                **SETTINGS | changed,
            )
            result = align.train(config)
            print(f"{config}\n{sum(r['seconds'] for r in result.metrics):.0f} s of training")
            lora = str(result.lora)
        pipe = align.load_pipeline(args.model, lora=lora)
    for steps, images in before.items():
        print(f"\n## {steps} steps, guidance {args.guidance_scale}\n")
        after = draw(pipe, prompts, steps, args.guidance_scale)
        report(measure(prompts, images), measure(prompts, after), args.noises)


if __name__ == "__main__":
    main()
