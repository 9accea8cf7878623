"""The scenes verifier as a judge, and its reader's measure of taste; never a training signal."""

from collections.abc import Callable

import torch


def _judge(argument: str | None, name: str, measure: Callable):
    if argument is not None:
        raise ValueError(f"judge {name!r} takes no argument, got {argument!r}")

    @torch.no_grad()
    def judge(images, prompts):
        return measure(images, prompts)

    judge.differentiable = False
    judge.judge = name  # so that the function is refused as a reward too
    return judge


def _verdict(index: int) -> Callable:
    def measure(images, prompts):
        from align.scenes import verify

        return verify(prompts, images)[index]

    return measure


def load_exact(argument: str | None, device):
    """1 where every stated fact holds and nothing else is in the picture, else 0."""
    return _judge(argument, "verifier", _verdict(0))


def load_partial(argument: str | None, device):
    """Share of stated facts that hold, in [0, 1]."""
    return _judge(argument, "verifier-partial", _verdict(1))


def load_taste(argument: str | None, device):
    """The exact value of the style that `scenes-taste` rewards, 0 to 6.5, whatever the prompt."""

    def measure(images, prompts):
        from align.scenes import measure_taste

        return measure_taste(images).value.to(images.device)

    return _judge(argument, "taste", measure)
