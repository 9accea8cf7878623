"""The scenes verifier as a judge: 0/1 or share of stated facts; never a training signal."""

import torch


def _load(argument: str | None, index: int, name: str):
    if argument is not None:
        raise ValueError(f"judge {name!r} takes no argument, got {argument!r}")

    @torch.no_grad()
    def judge(images, prompts):
        from align.scenes import verify

        return verify(prompts, images)[index]

    judge.differentiable = False
    judge.judge = name  # so that the function is refused as a reward too
    return judge


def load_exact(argument: str | None, device):
    """1 where every stated fact holds and nothing else is in the picture, else 0."""
    return _load(argument, 0, "verifier")


def load_partial(argument: str | None, device):
    """Share of stated facts that hold, in [0, 1]."""
    return _load(argument, 1, "verifier-partial")
