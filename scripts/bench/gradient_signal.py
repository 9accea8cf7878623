"""Where in a denoiser the reward's gradients of different pictures agree.

    python scripts/bench/gradient_signal.py
    python scripts/bench/gradient_signal.py --model embedded/scenes --steps 8 --guidance 3

A batch's gradient is what all pictures share plus noise of their own, which falls with the batch.
For each part of the denoiser prints the share of the squared gradient of a batch that independent
batches have in common (of the mean dot product of two of them; below 0 by chance), and the batch
at which noise equals signal (the simple noise scale of McCandlish et al. 2018, 1812.06162). Parts
with more signal are those to train: docs/training.md.
"""

import argparse
import random
from collections import defaultdict

import torch

import align
from align.diffusion.denoisers import make_denoiser
from align.diffusion.pixels import decode
from align.diffusion.sample import make_noise, sample
from align.language.prompts import load_prompts
from align.models.precision import autocast


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="embedded/scenes-turbo")
    parser.add_argument("--reward", default="scenes-detector:soft")
    parser.add_argument("--prompts", default="scenes")
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--guidance", type=float, default=1.0)
    parser.add_argument("--batches", type=int, default=20)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    pipe = align.load_pipeline(args.model)
    reward = align.load_reward(args.reward)
    pipe.unet.requires_grad_(True)
    weights = dict(pipe.unet.named_parameters())
    prompts, rng = load_prompts(args.prompts).prompts, random.Random(0)
    batches = []
    for number in range(args.batches):
        chosen = [rng.choice(prompts) for _ in range(args.batch_size)]
        seeds = range(number * args.batch_size, (number + 1) * args.batch_size)
        noise = make_noise(pipe, [*seeds])
        with autocast("cpu"):
            denoise = make_denoiser(pipe, chosen, guidance_scale=args.guidance)
            latents = sample(
                denoise, pipe.scheduler, noise,
                num_inference_steps=args.steps, grad_steps=args.steps,
            )  # fmt: skip
            images = decode(pipe, latents)
        score = reward(images.float(), chosen).mean()
        gradient = torch.autograd.grad(score, list(weights.values()), allow_unused=True)
        batches.append(
            {
                name: torch.zeros(weight.numel()) if part is None else part.flatten()
                for (name, weight), part in zip(weights.items(), gradient, strict=True)
            }
        )
    groups = defaultdict(list)
    for name in weights:
        groups["all"].append(name)
        words = name.split(".")
        groups[
            ".".join(words[:2]) if words[0] in ("down_blocks", "up_blocks") else words[0]
        ].append(name)
    print(f"{'part':<16}{'weights':>9}  signal, %  noise equals signal at")
    for group, names in groups.items():
        rows = torch.stack([torch.cat([batch[name] for name in names]) for batch in batches])
        dots = rows @ rows.T
        total = dots.trace() / len(rows)
        common = (dots.sum() - dots.trace()) / (len(rows) * (len(rows) - 1))
        scale = f"{args.batch_size * (total - common) / common:.0f}" if common > 0 else "-"
        print(f"{group:<16}{rows.shape[1]:>9}{100 * common / total:>11.1f}  {scale}")


if __name__ == "__main__":
    main()
