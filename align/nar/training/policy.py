"""The NAR model as a policy: exact log-probabilities, and the losses of GRPO and DPO on them.

A picture's log-probability is the sum of its tokens', and one teacher-forced pass gives them all.
Neither paper is about pictures; what is taken over, and where this departs from it:

- GRPO (DeepSeekMath, arXiv 2402.03300, equation 3): advantages normalized within a group, mean
  over the tokens. Every picture is used once, so the ratio to the policy that drew it is 1 and is
  never clipped. The divergence from the base is not the estimate of their equation 4 but exact at
  every visited state, as all logits are at hand.
- DPO (arXiv 2305.18290, equation 7): of a group the best and the worst picture are a pair. The
  pictures come from the present policy, so the preferences stay on its own distribution.
"""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from align.nar.model import Condition


def policy_logits(
    model: Any,
    ids: Int[Tensor, "b n"],
    condition: Condition,
    condition_mask: Bool[Tensor, "b t"] | None = None,
    *,
    guidance_scale: float = 1.0,
    temperature: float = 1.0,
) -> Float[Tensor, "b n v"]:
    """Logits that sampling at this guidance and temperature, without truncation, draws from.

    Guidance is part of the policy: null + s (conditional - null) are the logits of a
    distribution like any other, and their log-softmax is exact.
    """
    if guidance_scale == 1:
        return model(ids, condition, condition_mask) / temperature
    null, null_mask = model.null(condition, condition_mask)
    mask = None
    if condition_mask is not None and null_mask is not None:
        mask = torch.cat([condition_mask.bool(), null_mask.bool()])
    both = model(ids.repeat(2, 1), torch.cat([condition, null]), mask)
    conditional, unconditional = both.chunk(2)
    return (unconditional + guidance_scale * (conditional - unconditional)) / temperature


def token_log_probs(
    logits: Float[Tensor, "b n v"], ids: Int[Tensor, "b n"]
) -> Float[Tensor, "b n"]:
    """The log-probability of each token."""
    return -F.cross_entropy(logits.transpose(1, 2), ids, reduction="none")


def group_advantages(
    scores: Float[Tensor, " b"], group_size: int, normalize_std: bool = True
) -> Float[Tensor, " b"]:
    """Each score against the mean of its group of neighbours, in units of its deviation.

    A group whose scores are all alike, or that has none (NaN), teaches nothing: its advantages
    are 0.
    """
    groups = scores.view(-1, group_size)
    centred = groups - groups.mean(1, keepdim=True)
    if normalize_std:
        deviation = groups.std(1, keepdim=True)
        alike = deviation <= 1e-6 * groups.abs().amax(1, keepdim=True)
        centred = centred / torch.where(alike, torch.inf, deviation)
    return centred.nan_to_num(0.0).flatten()


def divergence(
    logits: Float[Tensor, "b n v"], base_logits: Float[Tensor, "b n v"]
) -> Float[Tensor, "b n"]:
    """KL(policy || base) of the next token, in nats, at every visited state."""
    log_policy, log_base = logits.log_softmax(-1), base_logits.log_softmax(-1)
    return (log_policy.exp() * (log_policy - log_base)).sum(-1)


def grpo_loss(
    log_probs: Float[Tensor, "b n"], advantages: Float[Tensor, " b"]
) -> Float[Tensor, " b"]:
    """The loss of each picture, a mean over its tokens, by the policy that drew it."""
    ratio = (log_probs - log_probs.detach()).exp()  # 1, with the gradient of log_probs
    return -(ratio * advantages[:, None]).mean(1)


def dpo_loss(
    best: Float[Tensor, " p"],
    worst: Float[Tensor, " p"],
    base_best: Float[Tensor, " p"],
    base_worst: Float[Tensor, " p"],
    beta: float,
) -> Float[Tensor, " p"]:
    """-log sigmoid(beta (margin - margin of the base)) of pairs, by pictures' log-probabilities."""
    return -F.logsigmoid(beta * ((best - worst) - (base_best - base_worst)))


def best_and_worst(
    scores: Float[Tensor, " b"], group_size: int
) -> tuple[Int[Tensor, " p"], Int[Tensor, " p"]]:
    """Rows of the best and the worst of every group whose scores are not all alike."""
    groups = scores.view(-1, group_size)
    first = torch.arange(len(groups), device=scores.device) * group_size
    differs = groups.amax(1) > groups.amin(1)
    return (first + groups.argmax(1))[differs], (first + groups.argmin(1))[differs]
