"""One optimizer step on the images of an update, by GRPO or DPO."""

import math
from typing import Any

import torch
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
from align.training.optimizer import step_optimizer
from align.training.stopping import Diverged, agree


def step_on(session: Any, sampled: Any) -> dict[str, float]:
    """Forward, backward and a step; returns what to log, the mean over this process's images.

    Args:
        session, sampled: `align.nar.training.align.NarSession` and its `Sampled` images.

    Raises Diverged, before the weights change, where the loss or the gradient is not finite.
    """
    c, accelerator = session.config, session.accelerator
    session.optimizer.zero_grad()
    backward = grpo_backward if c.method == "grpo" else dpo_backward
    figures = backward(session, sampled)
    value = figures["loss"]
    agree(accelerator, None if math.isfinite(value) else Diverged(f"the loss is {value}"), False)
    for parameter in session.parameters:
        gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        parameter.grad = accelerator.reduce(gradient, reduction="mean")
    norm, _ = step_optimizer(session, session.parameters, c.max_grad_norm)
    return figures | {"grad_norm": norm}


def logits_of(session: Any, sampled: Any, rows: Tensor) -> Tensor:
    """The policy's logits (b, n, v) for some of the images."""
    c = session.config
    with session.accelerator.autocast():
        return policy_logits(
            session.pipe.transformer,
            sampled.ids[rows],
            sampled.condition[rows],
            None if sampled.mask is None else sampled.mask[rows],
            guidance_scale=c.guidance_scale,
            temperature=c.temperature,
        )


def base_logits_of(session: Any, sampled: Any, rows: Tensor) -> Tensor:
    """The same of the base model: the adapter is off."""
    with torch.no_grad(), lora_disabled(session.pipe):
        return logits_of(session, sampled, rows)


def grpo_backward(session: Any, sampled: Any) -> dict[str, float]:
    """Accumulate the gradient of the policy gradient's loss and the divergence from the base."""
    c, count = session.config, len(sampled.ids)
    advantages = group_advantages(sampled.scores, c.group_size, c.normalize_std)
    totals = {"loss": 0.0, "kl": 0.0}
    for rows in torch.arange(count).split(c.micro_batch_size or count):
        logits = logits_of(session, sampled, rows)
        losses = grpo_loss(token_log_probs(logits, sampled.ids[rows]), advantages[rows])
        kl = torch.zeros_like(losses)
        if c.kl_weight:
            kl = divergence(logits, base_logits_of(session, sampled, rows)).mean(1)
        loss = (losses + c.kl_weight * kl).sum() / count
        loss.backward()
        totals["loss"] += float(loss.detach())
        totals["kl"] += float(kl.detach().sum()) / count
    if not c.kl_weight:
        del totals["kl"]
    return totals


def dpo_backward(session: Any, sampled: Any) -> dict[str, float]:
    """Accumulate the gradient of DPO on the best and the worst of every group.

    `kl` is the estimate of the divergence per token by the images at hand, best and worst.
    """
    c = session.config
    best, worst = best_and_worst(sampled.scores, c.group_size)
    groups = len(sampled.ids) // c.group_size
    totals = {"loss": 0.0, "margin": 0.0, "accuracy": 0.0, "kl": 0.0}
    size = max((c.micro_batch_size or len(sampled.ids)) // 2, 1)
    for good, bad in zip(best.split(size), worst.split(size), strict=True):
        if not len(good):
            break
        rows = torch.cat([good, bad])
        ids = sampled.ids[rows]
        log_probs = token_log_probs(logits_of(session, sampled, rows), ids)
        base = token_log_probs(base_logits_of(session, sampled, rows), ids)
        (won, lost), (base_won, base_lost) = log_probs.sum(1).chunk(2), base.sum(1).chunk(2)
        losses = dpo_loss(won, lost, base_won, base_lost, c.beta)
        loss = losses.sum() / groups
        loss.backward()
        margins = ((won - base_won) - (lost - base_lost)).detach()
        totals["loss"] += float(loss.detach())
        totals["margin"] += float(margins.sum()) / groups
        totals["accuracy"] += float((margins > 0).sum()) / groups
        totals["kl"] += float((log_probs.detach() - base).mean(1).sum()) / (2 * groups)
    return totals
