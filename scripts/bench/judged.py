"""Pictures of scenes prompts from fixed noises, and all that the scripts here measure on them."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from jpeg_lora import file_size
from scipy.stats import bootstrap

import align
from align import scenes
from align.models.lora import merge_lora
from align.runs.folder import to_pil
from align.training.judge import diversity

REWARDS = ("scenes-detector", "scenes-clip", "scenes-vqa", "scenes-preference")
MEASURES = ("exact", "partial", *REWARDS, "bytes")
PROMPTS_AT_ONCE = 5


@torch.no_grad()
def judge(
    pipe,
    prompts: Sequence[str],
    noises: int,
    steps: int,
    guidance: float,
    look: Callable[[torch.Tensor], None] = lambda images: None,
) -> dict[str, Float[np.ndarray, "prompts ..."]]:
    """By measure, a value for each prompt and noise; `diversity` has one a prompt.

    Noise j of prompt i is seeded with 1000 i + j. `look` sees the images [prompts, noises, 3, h, w]
    of a few prompts at a time. A LoRA in the pipeline is merged into it.
    """
    merge_lora(pipe)  # pictures take a third less time so
    rewards = {name: align.load_reward(name) for name in REWARDS}
    found: dict[str, list] = {name: [] for name in (*MEASURES, "diversity")}
    for i in range(0, len(prompts), PROMPTS_AT_ONCE):
        part = [prompt for prompt in prompts[i : i + PROMPTS_AT_ONCE] for _ in range(noises)]
        seeds = [1000 * (i + k // noises) + k % noises for k in range(len(part))]
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        images = align.generate(
            pipe, part, generator=generators, num_inference_steps=steps, guidance_scale=guidance
        )
        exact, partial = scenes.verify(part, images)
        found["exact"] += exact.double().tolist()
        found["partial"] += partial.double().tolist()
        for name, reward in rewards.items():
            found[name] += reward(images, part).double().tolist()
        found["bytes"] += [file_size(to_pil(image)) for image in images]
        together = images.unflatten(0, (-1, noises))
        if noises > 1:
            found["diversity"] += [diversity(of_prompt[None]) for of_prompt in together]
        look(together)
    values = {name: np.array(values, float) for name, values in found.items() if values}
    return {
        name: array if name == "diversity" else array.reshape(len(prompts), noises)
        for name, array in values.items()
    }


def save(path: Path, **values) -> None:
    """As JSON; arrays become lists."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lists = {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in values.items()}
    path.write_text(json.dumps(lists))


def interval(gain: Float[np.ndarray, " prompts"]) -> str:
    """The mean of a share in points, with its 95 % interval by resampling prompts."""
    if gain.std() == 0:
        return f"{100 * gain.mean():+.1f}"
    ci = bootstrap((gain,), np.mean, method="percentile", rng=0).confidence_interval
    return f"{100 * gain.mean():+.1f} ({100 * ci.low:+.1f} to {100 * ci.high:+.1f})"


def with_error(rise: Float[np.ndarray, " prompts"]) -> str:
    """The mean with its standard error."""
    return f"{rise.mean():+.3g} ± {rise.std(ddof=1) / len(rise) ** 0.5:.2g}"
