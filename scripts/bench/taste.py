"""What a LoRA trained to `scenes-taste` changes: the exact value, and what is right.

    python scripts/bench/taste.py runs/styled --out runs/taste.json --grid runs/taste.png

Pictures of ten prompts a category of half a, or of `--prompts`, from the same noises with and
without the LoRA, measured by the verifier's reader: the exact taste (docs/scenes.md), and the
verifier's exact. Paired differences with 95 % intervals over prompts; the rise of the value also in
standard deviations between the base's pictures. The grid has one fixed prompt a category, the
first of its set: before above, after below.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from scipy.stats import bootstrap

import align
from align.models.lora import merge_lora
from align.runs.files import atomic_path, write_json
from align.runs.folder import to_pil
from align.scenes import CATEGORIES, measure_taste, prompt_set, verify
from align.scenes.dataset import prompt_categories

AT_ONCE = 20
TASTES = ("radius", "gap", "color_distance", "evenness", "ground", "value")


def chosen_prompts(name: str, per_category: int) -> list[str]:
    """The first prompts of each category of a set."""
    prompts = prompt_set(name)
    found = prompt_categories(prompts)
    of = {c: [p for p, k in zip(prompts, found, strict=True) if k == c] for c in CATEGORIES}
    return [prompt for category in CATEGORIES for prompt in of[category][:per_category]]


@torch.no_grad()
def draw(lora: str | None, prompts: list[str], args: argparse.Namespace) -> torch.Tensor:
    """Images [prompts * noises, 3, 64, 64], a prompt's together; noise j of prompt i is seeded with
    1000 i + j."""
    pipe = align.load_pipeline("embedded/scenes", lora=[lora] if lora else [])
    merge_lora(pipe)
    texts = [prompt for prompt in prompts for _ in range(args.noises)]
    seeds = [1000 * (i // args.noises) + i % args.noises for i in range(len(texts))]
    images = []
    for i in range(0, len(texts), AT_ONCE):
        generators = [torch.Generator().manual_seed(seed) for seed in seeds[i : i + AT_ONCE]]
        images.append(
            align.generate(pipe, texts[i : i + AT_ONCE], generator=generators,
                           num_inference_steps=args.steps, guidance_scale=args.guidance)
        )  # fmt: skip
    return torch.cat(images)


def measure(images: torch.Tensor, prompts: list[str], noises: int) -> dict[str, np.ndarray]:
    """By measure, a value for each prompt and noise."""
    texts = [prompt for prompt in prompts for _ in range(noises)]
    exact, partial = verify(texts, images)
    found = {name: getattr(measure_taste(images), name) for name in TASTES}
    found |= {"exact": exact, "partial": partial}
    return {k: v.double().numpy().reshape(len(prompts), noises) for k, v in found.items()}


def before(prompts: list[str], args: argparse.Namespace) -> tuple[torch.Tensor, dict]:
    """The base's pictures and measures, kept in `--base` once they are made."""
    if args.base and args.base.exists():
        kept = torch.load(args.base, weights_only=True)
        return kept["images"], {k: v.numpy() for k, v in kept["found"].items()}
    images = draw(None, prompts, args)
    found = measure(images, prompts, args.noises)
    if args.base:
        tensors = {k: torch.from_numpy(v) for k, v in found.items()}
        with atomic_path(args.base) as temporary:
            torch.save({"images": images, "found": tensors}, temporary)
    return images, found


def interval(gain: np.ndarray) -> list[float]:
    """Mean and 95 % interval of paired differences, by resampling prompts."""
    by_prompt = gain.mean(1)
    if by_prompt.std() == 0:
        return [float(by_prompt.mean())] * 3
    ci = bootstrap((by_prompt,), np.mean, method="percentile", rng=0).confidence_interval
    return [float(by_prompt.mean()), float(ci.low), float(ci.high)]


@torch.no_grad()
def agreement(images: torch.Tensor, found: dict[str, np.ndarray]) -> float:
    """Correlation of the reward, for a prompt that asks for nothing it reads, with the value, over
    the pictures in which the reader finds an object."""
    scores = align.load_reward("scenes-taste")(images, ["a red circle"] * len(images))
    some = found["radius"].flatten() > 0
    return float(np.corrcoef(scores.numpy()[some], found["value"].flatten()[some])[0, 1])


def save_grid(path: Path, rows: list[torch.Tensor], scale: int = 3) -> None:
    """Rows of pictures, each [n, 3, 64, 64], white lines between."""
    padded = [torch.nn.functional.pad(row, (1, 1, 1, 1), value=1.0) for row in rows]
    whole = torch.cat([torch.cat(list(row), 2) for row in padded], 1)
    image = to_pil(whole)
    with atomic_path(path) as temporary:
        size = (image.width * scale, image.height * scale)
        image.resize(size, Image.Resampling.NEAREST).save(temporary, "PNG")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("loras", nargs="+", help="runs, folders or files, each with =WEIGHT if any")
    parser.add_argument("--prompts", default="scenes-heldout-a")
    parser.add_argument("--per-category", type=int, default=10)
    parser.add_argument("--noises", type=int, default=2)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--guidance", type=float, default=3.0)
    parser.add_argument("--base", type=Path, help="where the base's pictures are kept")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--grid", type=Path)
    args = parser.parse_args()
    prompts = chosen_prompts(args.prompts, args.per_category)
    base_images, base = before(prompts, args)
    deviation = base["value"].std(ddof=1)
    print(f"scenes-taste and the value: correlation {agreement(base_images, base):.2f}")
    print({k: round(float(v.mean()), 3) for k, v in base.items()}, f"sd {deviation:.3f}")
    results = {}
    for lora in args.loras:
        images = draw(lora, prompts, args)
        found = measure(images, prompts, args.noises)
        gains = {name: interval(found[name] - base[name]) for name in base}
        gains["value_sd"] = [x / deviation for x in gains["value"]]
        results[lora] = gains
        for name, (mean, low, high) in gains.items():
            print(f"{lora} {name} {mean:+.3f} ({low:+.3f} to {high:+.3f})", flush=True)
        if args.grid:
            first = slice(0, None, args.per_category * args.noises)
            save_grid(args.grid, [base_images[first], images[first]])
    if args.out:
        means = {k: float(v.mean()) for k, v in base.items()}
        write_json(args.out, {"base": means, "deviation": deviation, "gains": results})


if __name__ == "__main__":
    main()
