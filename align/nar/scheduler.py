"""How tokens are drawn from logits: temperature, truncation, guidance over the passes."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import ConfigMixin, SchedulerMixin
from diffusers.configuration_utils import register_to_config
from diffusers.utils import BaseOutput
from jaxtyping import Float, Int
from torch import Tensor

GUIDANCE_SCHEDULES = ("constant", "linear", "cosine")


@dataclass
class NARSchedulerOutput(BaseOutput):
    """`prev_sample`: the drawn token ids `[batch, k]`."""

    prev_sample: Int[Tensor, "b k"]


class NARScheduler(SchedulerMixin, ConfigMixin):
    """Draws the tokens of a wavefront in one call.

    Args:
        temperature: divides the logits; 0 takes the most probable token.
        top_k: keep only the k most probable tokens; 0 keeps all.
        top_p: keep the smallest set of tokens with at least this probability; 1 keeps all.
        guidance_scale: s in `null + s (conditional - null)`; 1 is no guidance.
        guidance_schedule: "constant", or a "linear" or "cosine" rise from 1 to the scale.
        guidance_tokens: no guidance after this many tokens; -1 guides them all.

    Raises:
        ValueError: a value out of range.
    """

    config: Any
    order = 1

    @register_to_config
    def __init__(
        self,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        guidance_scale: float = 1.0,
        guidance_schedule: str = "constant",
        guidance_tokens: int = -1,
    ):
        if not temperature >= 0:
            raise ValueError(f"temperature {temperature}: must be at least 0 (0 is greedy)")
        if top_k < 0:
            raise ValueError(f"top_k {top_k}: must be at least 0 (0 keeps every token)")
        if not 0 < top_p <= 1:
            raise ValueError(f"top_p {top_p}: must be above 0 and at most 1")
        if not guidance_scale >= 1:
            raise ValueError(f"guidance scale {guidance_scale}: must be at least 1 (1 is none)")
        if guidance_schedule not in GUIDANCE_SCHEDULES:
            raise ValueError(
                f"guidance schedule {guidance_schedule!r}: "
                f"must be one of {', '.join(GUIDANCE_SCHEDULES)}"
            )

    def guidance_scales(self, starts: tuple[int, ...]) -> list[float]:
        """The guidance scale of every pass; `starts[g]` tokens are known before pass g."""
        passes = len(starts) - 1
        scales = []
        for number, known in enumerate(starts[:-1]):
            done = number / max(passes - 1, 1)
            rise = {
                "constant": 1.0,
                "linear": done,
                "cosine": (1 - math.cos(math.pi * done)) / 2,
            }[self.config.guidance_schedule]
            # the published decoder switches off once more than `guidance_tokens` are known
            active = self.config.guidance_tokens < 0 or known <= self.config.guidance_tokens
            scales.append(1 + (self.config.guidance_scale - 1) * rise if active else 1.0)
        return scales

    def step(
        self,
        model_output: Float[Tensor, "b k v"],
        uniforms: Float[Tensor, "b k"] | None = None,
        return_dict: bool = True,
    ) -> NARSchedulerOutput | tuple[Int[Tensor, "b k"]]:
        """Draw one token for every position from its (guided) logits.

        Args:
            model_output: logits.
            uniforms: numbers in [0, 1) that decide the draw by inversion of the cumulative
                distribution; None, or a temperature of 0, takes the most probable token.
        """
        if uniforms is None or self.config.temperature == 0:
            ids = model_output.argmax(-1)
        else:
            probs = self.probabilities(model_output)
            ids = invert(probs, uniforms)
        return NARSchedulerOutput(ids) if return_dict else (ids,)

    def probabilities(self, logits: Float[Tensor, "b k v"]) -> Float[Tensor, "b k v"]:
        """The distribution that tokens are drawn from: temperature, then top-k, then top-p."""
        logits = logits / max(self.config.temperature, 1e-5)
        top_k = min(self.config.top_k, logits.shape[-1])
        if top_k:
            lowest = logits.topk(top_k).values[..., -1:]
            logits = logits.masked_fill(logits < lowest, -torch.inf)
        if self.config.top_p < 1:
            ranked, indices = logits.sort(descending=True)
            probs = ranked.softmax(-1)
            before = probs.cumsum(-1) - probs  # mass of strictly better tokens
            drop = torch.zeros_like(logits, dtype=torch.bool)
            drop.scatter_(-1, indices, before > self.config.top_p)
            logits = logits.masked_fill(drop, -torch.inf)
        return logits.softmax(-1)


def invert(probs: Float[Tensor, "b k v"], uniforms: Float[Tensor, "b k"]) -> Int[Tensor, "b k"]:
    """The token whose share of [0, 1) holds the uniform number; never one of probability 0."""
    cumulative = probs.cumsum(-1)
    point = uniforms.clamp(max=1 - 2.0**-23)[..., None] * cumulative[..., -1:]
    return torch.searchsorted(cumulative, point, right=True).squeeze(-1)


def draw_uniforms(
    batch: int,
    count: int,
    generator: torch.Generator | list[torch.Generator] | None,
    device: torch.device,
) -> Float[Tensor, "b n"]:
    """One uniform number in [0, 1) per token, from one generator or one per picture.

    With one generator per picture a picture does not depend on what is drawn beside it.
    """
    if isinstance(generator, list):
        if len(generator) != batch:
            raise ValueError(f"{len(generator)} generators for a batch of {batch} pictures")
        rows = [torch.rand(count, generator=g, device=g.device).to(device) for g in generator]
        return torch.stack(rows)
    source = generator.device if generator is not None else device
    return torch.rand(batch, count, generator=generator, device=source).to(device)


def changed_scheduler(scheduler: NARScheduler, changes: dict[str, Any]) -> NARScheduler:
    """One with the settings of `scheduler` as they are now, but for the changes."""
    own = {key: value for key, value in scheduler.config.items() if not key.startswith("_")}
    return NARScheduler(**own | changes)
