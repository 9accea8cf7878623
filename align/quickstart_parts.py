"""The parts of `align quickstart` beside the training: noise search, and NAR."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from align.models import EMBEDDED
from align.optimize_config import OptimizeRunConfig
from align.rewards.catalogue import SCENES_REWARD

SEARCH = OptimizeRunConfig(
    reward=SCENES_REWARD,
    budget="16images",
    num_inference_steps=8,
    guidance_scale=3.0,
)
NAR = "embedded/nar-scenes"


@dataclass(frozen=True)
class Found:
    """The picture of each prompt's first noise, and the best that a search found."""

    before: Float[Tensor, "b 3 h w"]
    after: Float[Tensor, "b 3 h w"]


@dataclass(frozen=True)
class NarPictures:
    """One picture per prompt, wavefront by wavefront."""

    images: Float[Tensor, "b 3 h w"]
    exact: list[bool]
    passes: int
    tokens: int
    seconds: float


def search_noise(pipe: Any, prompts: Sequence[str], seed: int, device: str | None = None) -> Found:
    """Search the noise of each prompt, from the noise of `seed` on, as `align optimize` does."""
    from tqdm import tqdm

    from align.config import OptimizeConfig
    from align.noise_opt import optimize
    from align.rewards import load_reward

    settings: dict[str, Any] = {f.name: getattr(SEARCH, f.name) for f in fields(OptimizeConfig)}
    settings["seed"] = seed
    reward = load_reward(SEARCH.reward or "", device)
    before, after = [], []
    for prompt in tqdm(prompts, unit="prompt"):
        last = None
        for last in optimize(pipe, prompt, reward, OptimizeConfig(**settings)):
            if last.iteration == 0:
                before.append(last.images[0].cpu())
        assert last is not None  # at least the first iteration
        after.append(last.best_image.cpu())
    return Found(torch.stack(before), torch.stack(after))


def draw_nar(
    prompts: Sequence[str], seeds: Sequence[int], device: str | None = None
) -> NarPictures | None:
    """A picture of each prompt by the embedded NAR model; None where it is not installed."""
    from align.nar.commands import draw
    from align.nar.load import load_nar_pipeline
    from align.scenes import verify

    if not (EMBEDDED / NAR.partition("/")[2] / "model_index.json").is_file():
        return None
    pipe = load_nar_pipeline(NAR, device)
    started = time.monotonic()
    images = draw(pipe, list(prompts), list(seeds)).images.cpu()
    seconds = time.monotonic() - started
    exact, _ = verify(list(prompts), images)
    order = pipe.transformer.order
    passes, tokens = order.num_passes, order.num_tokens
    return NarPictures(images, [bool(e) for e in exact], passes, tokens, seconds)
