"""How often `embedded/scenes` draws what a prompt says, by the verifier, category by category.

    python scripts/bench/scenes_model.py                                  # 60 seen prompts each
    python scripts/bench/scenes_model.py --prompts scenes-heldout-a --per-category 20
    python scripts/bench/scenes_model.py --autoencoder                    # the ceiling its VAE sets

Prints a Markdown table of exact and partial scores with 95 % bootstrap intervals over prompts.
"""

import argparse
import time

import numpy as np
import torch
from scipy.stats import bootstrap

import align
from align import scenes


def pick(name: str, per_category: int) -> dict[str, list[str]]:
    """The first `per_category` prompts of each category in a built-in set."""
    chosen: dict[str, list[str]] = {}
    for prompt in scenes.prompt_set(name):
        prompts = chosen.setdefault(scenes.category(prompt), [])
        if len(prompts) < per_category:
            prompts.append(prompt)
    return chosen


def true_pictures(name: str, category: str, count: int) -> tuple[list[str], torch.Tensor]:
    """Renders and their prompts; held-out combinations if `name` is a held-out set."""
    pairs = [scenes.sample(category, 10_000 + i, "heldout" in name) for i in range(count)]
    images = np.stack([image for _, image in pairs])
    return [p for p, _ in pairs], torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255


@torch.no_grad()
def round_trip(pipe, images: torch.Tensor) -> torch.Tensor:
    latents = pipe.vae.encode(images * 2 - 1).latent_dist.mean
    return align.decode(pipe, latents * pipe.vae.config.scaling_factor)


def interval(values: np.ndarray) -> str:
    if values.std() == 0:
        return f"{100 * values.mean():.1f}"
    ci = bootstrap((values,), np.mean, method="percentile", rng=0).confidence_interval
    return f"{100 * values.mean():.1f} ({100 * ci.low:.1f}-{100 * ci.high:.1f})"


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="embedded/scenes")
    parser.add_argument("--lora", action="append", default=[])
    parser.add_argument("--prompts", default="scenes")
    parser.add_argument("--per-category", type=int, default=60)
    parser.add_argument("--noises", type=int, default=1, help="images per prompt")
    parser.add_argument("--num-inference-steps", type=int, default=25)
    parser.add_argument("--guidance-scale", type=float, default=3.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--autoencoder", action="store_true")
    args = parser.parse_args()
    pipe = align.load_pipeline(args.model, lora=args.lora or None)
    print("| category | n | exact % | partial % |\n|---|---|---|---|")
    means, start = [], time.monotonic()
    for category, prompts in pick(args.prompts, args.per_category).items():
        if args.autoencoder:
            prompts, truth = true_pictures(args.prompts, category, args.per_category)
            images = round_trip(pipe, truth)
        else:
            prompts = [p for p in prompts for _ in range(args.noises)]
            images = torch.cat(
                [
                    align.generate(
                        pipe, prompts[i : i + 20], seed=args.seed + i,
                        num_inference_steps=args.num_inference_steps,
                        guidance_scale=args.guidance_scale,
                    )
                    for i in range(0, len(prompts), 20)
                ]
            )  # fmt: skip
        exact, partial = scenes.verify(prompts, images)
        per_prompt = exact.double().view(-1, args.noises).mean(1).numpy()
        means.append((per_prompt.mean(), float(partial.mean())))
        shares = f"{interval(per_prompt)} | {100 * means[-1][1]:.1f}"
        print(f"| {category} | {len(prompts)} | {shares} |", flush=True)
    exact, partial = 100 * np.mean(means, axis=0)
    print(f"| **mean of categories** | | **{exact:.1f}** | **{partial:.1f}** |")
    print(f"\n{time.monotonic() - start:.0f} s")


if __name__ == "__main__":
    main()
