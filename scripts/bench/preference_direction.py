"""How much of what ranked pictures say about the weights do different prompts share, and does a
step along it make the pictures of other prompts right?

    python scripts/bench/preference_direction.py            # half an hour of one core
    python scripts/bench/preference_direction.py --per-category 2 --test 2 --noises 1   # a minute

Eight pictures a prompt of `scenes-heldout-a` are ranked by a reward. A group's gradient is that of
the denoising error of the two worst less that of the two best, at eight timesteps, by all weights
of the denoiser. Each weight then moves by the mean over groups, in units of its root mean square.
The verifier judges other prompts of half a, from the same noises before and after. There is no LoRA
and no training in it: it tells what a training could find.
"""

import argparse

import torch
from torch import Tensor

import align
from align import scenes
from align.denoisers import make_denoiser
from align.pixels import decode
from align.sample import sample

GROUP, BEST, TIMESTEPS, SIZE = 8, 2, 8, (4, 16, 16)


@torch.no_grad()
def draw_group(pipe, reward, prompt: str, seed: int, args) -> tuple[Tensor, Tensor]:
    """Latents and scores of a prompt's pictures."""
    noise = torch.randn((GROUP, *SIZE), generator=torch.Generator().manual_seed(seed))
    denoise = make_denoiser(pipe, [prompt] * GROUP, guidance_scale=args.guidance_scale)
    latents = sample(denoise, pipe.scheduler, noise, num_inference_steps=args.steps)
    return latents, reward(decode(pipe, latents), [prompt] * GROUP)


def group_gradient(pipe, parameters, prompt, latents, scores, generator) -> list[Tensor]:
    """By all weights; both of a pair get the same noise and timesteps."""
    order = scores.argsort()
    chosen = torch.cat([order[-BEST:], order[:BEST]])
    signs = torch.tensor([-1.0] * BEST + [1.0] * BEST).repeat_interleave(TIMESTEPS)
    count = len(pipe.scheduler.alphas_cumprod)
    times = (torch.arange(TIMESTEPS) + torch.rand(1, generator=generator)) / TIMESTEPS
    times = (times * (count - 1)).long().repeat(len(chosen))
    noise = torch.randn((TIMESTEPS, *SIZE), generator=generator).repeat(len(chosen), 1, 1, 1)
    clean = latents[chosen].repeat_interleave(TIMESTEPS, 0)
    denoise = make_denoiser(pipe, [prompt] * len(clean), guidance_scale=1.0)
    output = denoise(pipe.scheduler.add_noise(clean, noise, times), times)
    target = pipe.scheduler.get_velocity(clean, noise, times)
    errors = (output - target).square().flatten(1).mean(1)
    return list(torch.autograd.grad((errors * signs).sum(), parameters))


@torch.no_grad()
def judge(pipe, reward, prompts: list[str], args) -> tuple[Tensor, Tensor]:
    """Scores and exactness of every prompt, means over its noises."""
    scores, exact = [], []
    for i, prompt in enumerate(prompts):
        part = [prompt] * args.noises
        images = align.generate(
            pipe, part, seed=1000 * i, num_inference_steps=args.judged_steps,
            guidance_scale=args.judged_guidance,
        )  # fmt: skip
        scores.append(reward(images, part).mean())
        exact.append(100 * scenes.verify(part, images)[0].double().mean())
    return torch.stack(scores), torch.stack(exact)


def rise(before: Tensor, after: Tensor) -> str:
    gain = after - before
    return f"{gain.mean():+.3f} ± {gain.std() / len(gain) ** 0.5:.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--reward", default="z(scenes-detector=1,scenes-clip=1,scenes-vqa=1)")
    parser.add_argument("--per-category", type=int, default=20, help="prompts to learn from")
    parser.add_argument("--test", type=int, default=20, help="prompts a category to judge by")
    parser.add_argument("--noises", type=int, default=4, help="of each of them")
    parser.add_argument("--lengths", type=float, nargs="+", default=[1.0, 2.0])
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--guidance-scale", type=float, default=3.0)
    parser.add_argument("--judged-steps", type=int, default=8)
    parser.add_argument("--judged-guidance", type=float, default=3.0)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    pipe, reward = align.load_pipeline("embedded/scenes"), align.load_reward(args.reward)
    learned = scenes.prompt_set("scenes-heldout-a", args.per_category)
    more = scenes.prompt_set("scenes-heldout-a", args.per_category + args.test)
    judged = [prompt for prompt in more if prompt not in set(learned)]
    parameters = list(pipe.unet.parameters())
    total = [torch.zeros_like(p) for p in parameters]
    squares = [torch.zeros_like(p) for p in parameters]
    generator = torch.Generator().manual_seed(0)
    for number, prompt in enumerate(learned):
        latents, scores = draw_group(pipe, reward, prompt, 90_000 + number, args)
        pipe.unet.requires_grad_(True)
        gradient = group_gradient(pipe, parameters, prompt, latents, scores, generator)
        pipe.unet.requires_grad_(False)
        for t, s, g in zip(total, squares, gradient, strict=True):
            t.add_(g)
            s.add_(g.square())
    n = len(learned)
    power = float(sum(s.sum() for s in squares)) / n
    mean = float(sum((t / n).square().sum() for t in total))
    print(f"shared by two groups: {(n * mean - power) / (n - 1) / power:.4f} of a group's gradient")
    before, found = [p.detach().clone() for p in parameters], []
    for t, s in zip(total, squares, strict=True):
        spread = (s / n).sqrt()
        found.append(t / n / (spread + spread.mean() + 1e-12))
    start = judge(pipe, reward, judged, args)
    print(f"{len(judged)} other prompts: exact {start[1].mean():.1f} %")
    for length in args.lengths:
        with torch.no_grad():
            for p, old, step in zip(parameters, before, found, strict=True):
                p.copy_(old + 1e-3 * length * step)
        end = judge(pipe, reward, judged, args)
        print(
            f"length {length:g}: reward {rise(start[0], end[0])}, "
            f"exact {rise(start[1], end[1])} points",
            flush=True,
        )


if __name__ == "__main__":
    main()
