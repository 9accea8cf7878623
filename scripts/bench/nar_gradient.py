"""How much one update of `align nar align` can know: the policy gradient against its own noise.

    python scripts/bench/nar_gradient.py --prompts 120 --images 16       # 20 minutes on a core

Pictures of `scenes-heldout-a` are drawn by the policy and scored; the gradient of every picture's
log-probability with respect to a fresh LoRA is taken one by one. Printed for some estimators, among
them the credit of wavefronts by `--gae-lambda`, and parts of the model:

- groups for SNR 1: the number of prompts whose mean gradient is as long as its noise (the "simple
  noise scale" of arXiv 1812.06162, equation 2.9, with a prompt's pictures as one sample);
- held-out r: how far the direction found on four fifths of the prompts predicts, to first order,
  which pictures of the other fifth have the better reward (correlation within a prompt). A step
  of KL nats a picture along it gains about r sqrt(2 KL) standard deviations of the reward;
- held-out exact: the same for the verifier's word, in points of a step with 2 KL = 1.
"""

import argparse

import torch
from jaxtyping import Float
from torch import Tensor

from align import scenes
from align.lora import add_lora
from align.nar.alignment import LORA_TARGETS
from align.nar.credit import (
    generalized_advantages,
    scores_of_unfinished,
    value_points,
    values_of,
)
from align.nar.generate import generate_ids
from align.nar.load import load_nar_pipeline
from align.nar.policy import group_advantages, group_deviation, policy_logits, token_log_probs
from align.rewards import load_reward

FOLDS = 5
POINTS = 15  # at which an unfinished picture is scored
REWARD = "z(scenes-detector=1,scenes-clip=1,scenes-vqa=1)"


@torch.no_grad()
def draw(args: argparse.Namespace, pipe, prompts: list[str]):
    """Tokens (p, m, n), rewards (p, m), of the unfinished (p, m, k), the verifier's word (p, m)."""
    reward, ids, scores, exact = load_reward(args.reward), [], [], []
    unfinished, order = [], pipe.transformer.order
    for number, prompt in enumerate(prompts):
        repeated = [prompt] * args.images
        condition, mask = pipe.conditions(repeated, None, 1)
        seeds = range(args.images * number, args.images * (number + 1))
        drawn = generate_ids(
            pipe.transformer,
            condition,
            condition_mask=mask,
            guidance_scale=args.guidance_scale,
            temperature=args.temperature,
            generator=[torch.Generator().manual_seed(args.seed * 1_000_000 + s) for s in seeds],
        )
        pictures = pipe.preview(drawn)
        ids.append(drawn)
        scores.append(reward(pictures, repeated).float())
        nothing = [{} for _ in repeated]
        unfinished.append(scores_of_unfinished(reward, pictures, repeated, nothing, order, POINTS))
        exact.append(scenes.verify(repeated, pictures)[0].float())
    return torch.stack(ids), torch.stack(scores), torch.stack(unfinished), torch.stack(exact)


def gradients(
    args: argparse.Namespace, pipe, prompts: list[str], ids: Tensor, credit: Float[Tensor, "p m n"]
):
    """With respect to the LoRA's second factors: of log p of every picture (p, m, d), of a prompt's
    tokens by their credit (p, d); and the block of every entry."""
    named = [(n, p) for n, p in pipe.transformer.named_parameters() if "lora_B" in n]
    parameters, found = [p for _, p in named], []
    credited = torch.zeros(len(prompts), sum(p.numel() for p in parameters))

    def gradient(value: Tensor) -> Tensor:
        parts = torch.autograd.grad(value, parameters, retain_graph=True)
        return torch.cat([part.flatten() for part in parts])

    for number, prompt in enumerate(prompts):
        condition, mask = pipe.conditions([prompt], None, 1)
        for picture, earned in zip(ids[number].split(1), credit[number].split(1), strict=True):
            logits = policy_logits(
                pipe.transformer,
                picture,
                condition,
                mask,
                guidance_scale=args.guidance_scale,
                temperature=args.temperature,
            )
            log_probs = token_log_probs(logits, picture)
            found.append(gradient(log_probs.sum()))
            credited[number] += gradient((log_probs * earned).sum())
        if number % 10 == 9:
            print(f"{number + 1} prompts", flush=True)
    blocks = torch.cat([torch.full((p.numel(),), int(n.split(".")[1])) for n, p in named])
    return torch.stack(found).view(len(prompts), args.images, -1), credited, blocks


def estimators(scores: Float[Tensor, "p m"]) -> dict[str, Float[Tensor, "p m"]]:
    """Weights of a prompt's pictures in the gradient."""
    size = scores.shape[1]
    order = scores.argsort(1)

    def extremes(count: int, best: float = 1.0) -> Tensor:
        weights = torch.zeros_like(scores).scatter_(1, order[:, :count], -1.0)
        return weights.scatter_(1, order[:, -count:], best)

    return {
        "GRPO": group_advantages(scores.flatten(), size).view_as(scores),
        "best and worst (DPO's pair)": extremes(1),
        "two best, two worst": extremes(2),
        "two worst alone": extremes(2, best=0.0),
    }


def noise_scale(groups: Float[Tensor, "p d"]) -> float:
    """Prompts at which the mean gradient is as long as its noise; infinite where none is seen."""
    count = len(groups)
    total, own = groups.sum(0).square().sum(), groups.square().sum()
    squared_mean = (total - own) / (count * (count - 1))  # without bias
    variance = own / count - squared_mean
    return float(variance / squared_mean) if squared_mean > 0 else float("inf")


def held_out(
    found: Float[Tensor, "p m d"], groups: Float[Tensor, "p d"], values: list[Tensor]
) -> list[Float[Tensor, " p"]]:
    """Of each prompt: covariance of the unit-variance prediction with each of `values`."""
    centred, fold = found - found.mean(1, keepdim=True), torch.arange(len(found)) % FOLDS
    results = [torch.zeros(len(found)) for _ in values]
    for number in range(FOLDS):
        rest, own = fold != number, fold == number
        predicted = centred[own] @ groups[rest].sum(0)
        predicted = predicted / predicted.std()
        for result, value in zip(results, values, strict=True):
            result[own] = (predicted * value[own]).mean(1)
    return results


def with_error(values: Tensor, factor: float = 1.0) -> str:
    error = values.std() / len(values) ** 0.5
    return f"{factor * values.mean():.3f} ± {factor * error:.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="embedded/nar-scenes")
    parser.add_argument("--reward", default=REWARD)
    parser.add_argument("--prompts", type=int, default=120)
    parser.add_argument("--images", type=int, default=16, help="of a prompt")
    parser.add_argument("--guidance-scale", type=float, default=2.0)
    parser.add_argument("--temperature", type=float, default=0.7)
    parser.add_argument("--gae-lambda", type=float, default=0.8)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    pipe, known = load_nar_pipeline(args.model, "cpu"), scenes.prompt_set("scenes-heldout-a")
    shuffled = torch.randperm(len(known), generator=torch.Generator().manual_seed(args.seed))
    prompts = [known[i] for i in shuffled[: args.prompts].tolist()]
    ids, scores, unfinished, exact = draw(args, pipe, prompts)
    advantages = group_advantages(scores.flatten(), args.images)
    deviation = group_deviation(scores.flatten(), args.images)
    values = values_of(unfinished.flatten(0, 1) / deviation[:, None], advantages, args.images)
    order = pipe.transformer.order
    total, left = order.num_passes, advantages.square().mean()
    for done, value in zip(value_points(total, POINTS), values.T, strict=True):
        seen = 1 - (advantages - value).square().mean() / left
        print(f"after {done} of {total} passes the score explains {seen:.3f}")
    credit = generalized_advantages(values, advantages, order, args.gae_lambda)
    advantages = advantages.view_as(scores)
    torch.manual_seed(args.seed)
    add_lora(pipe, args.rank, None, LORA_TARGETS)
    found, credited, blocks = gradients(
        args, pipe, prompts, ids, credit.view(*scores.shape, credit.shape[1])
    )
    gain = (advantages * exact).mean(1)
    best = exact.gather(1, scores.argmax(1, keepdim=True)).mean()
    print(f"exact {100 * exact.mean():.1f} %, of the best of {args.images} {100 * best:.1f} %")
    print(f"a standard deviation of reward is worth {with_error(gain, 100)} points\n")
    print("| LoRA in | estimator | groups for SNR 1 | held-out r | held-out exact, points |")
    print("|---|---|---|---|---|")
    last = int(blocks.max())
    parts = {"all blocks": blocks >= 0, "the last two blocks": blocks >= last - 1}
    for part, chosen in parts.items():
        own = found[:, :, chosen]
        sums = {n: torch.einsum("pm,pmd->pd", w, own) for n, w in estimators(scores).items()}
        sums[f"GRPO, gae_lambda {args.gae_lambda:g}"] = credited[:, chosen]
        for name, groups in sums.items():
            reward, right = held_out(own, groups, [advantages, exact])
            needed = f"{noise_scale(groups):.0f}"
            figures = f"{needed} | {with_error(reward)} | {with_error(right, 100)}"
            print(f"| {part} | {name} | {figures} |")


if __name__ == "__main__":
    main()
