"""The losses of the images that a NAR policy has drawn, by GRPO or DPO."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from align.models.lora import lora_disabled
from align.nar.training.policy import (
    best_and_worst,
    divergence,
    dpo_loss,
    group_advantages,
    grpo_loss,
    policy_logits,
    token_log_probs,
)
from align.training.runs import Run


@dataclass(frozen=True)
class Sampled:
    """The images of an update in this process: groups of neighbours share a prompt."""

    ids: Int[Tensor, "b n"]
    condition: Tensor
    mask: Bool[Tensor, "b t"] | None
    terms: dict[str, Float[Tensor, " b"]]
    scores: Float[Tensor, " b"]


@dataclass(frozen=True)
class Part:
    """The loss of some of the images, and figures that add up to those of all."""

    loss: Float[Tensor, ""]
    figures: dict[str, float]
    sampled: Sampled


def logits_of(run: Run, sampled: Sampled, rows: Tensor) -> Tensor:
    """The policy's logits (b, n, v) for some of the images."""
    c = run.config
    with run.accelerator.autocast():
        return policy_logits(
            run.pipe.transformer,
            sampled.ids[rows],
            sampled.condition[rows],
            None if sampled.mask is None else sampled.mask[rows],
            guidance_scale=c.guidance_scale,
            temperature=c.temperature,
        )


def base_logits_of(run: Run, sampled: Sampled, rows: Tensor) -> Tensor:
    """The same of the base model: the adapter is off."""
    with torch.no_grad(), lora_disabled(run.pipe):
        return logits_of(run, sampled, rows)


def grpo_losses(run: Run, sampled: Sampled) -> Iterator[Part]:
    """The policy gradient's loss and the divergence from the base."""
    c, count = run.config, len(sampled.ids)
    advantages = group_advantages(sampled.scores, c.group_size, c.normalize_std)
    for rows in torch.arange(count).split(c.micro_batch_size or count):
        logits = logits_of(run, sampled, rows)
        losses = grpo_loss(token_log_probs(logits, sampled.ids[rows]), advantages[rows])
        figures = {}
        if c.kl_weight:
            kl = divergence(logits, base_logits_of(run, sampled, rows)).mean(1)
            losses = losses + c.kl_weight * kl
            figures["kl"] = float(kl.detach().sum()) / count
        loss = losses.sum() / count
        yield Part(loss, {"loss": float(loss.detach()), **figures}, sampled)


def dpo_losses(run: Run, sampled: Sampled) -> Iterator[Part]:
    """DPO on the best and the worst of every group.

    `kl` is the estimate of the divergence per token by the images at hand, best and worst.
    """
    c = run.config
    best, worst = best_and_worst(sampled.scores, c.group_size)
    groups = len(sampled.ids) // c.group_size
    size = max((c.micro_batch_size or len(sampled.ids)) // 2, 1)
    for good, bad in zip(best.split(size), worst.split(size), strict=True):
        if not len(good):  # no group has two images that differ
            nothing = torch.zeros((), device=sampled.ids.device, requires_grad=True)
            none = {"loss": 0.0, "margin": 0.0, "accuracy": 0.0, "kl": 0.0}
            yield Part(nothing, none, sampled)
            return
        rows = torch.cat([good, bad])
        ids = sampled.ids[rows]
        log_probs = token_log_probs(logits_of(run, sampled, rows), ids)
        base = token_log_probs(base_logits_of(run, sampled, rows), ids)
        (won, lost), (base_won, base_lost) = log_probs.sum(1).chunk(2), base.sum(1).chunk(2)
        loss = dpo_loss(won, lost, base_won, base_lost, c.beta).sum() / groups
        margins = ((won - base_won) - (lost - base_lost)).detach()
        figures = {
            "loss": float(loss.detach()),
            "margin": float(margins.sum()) / groups,
            "accuracy": float((margins > 0).sum()) / groups,
            "kl": float((log_probs.detach() - base).mean(1).sum()) / (2 * groups),
        }
        yield Part(loss, figures, sampled)
