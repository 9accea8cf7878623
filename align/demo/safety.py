"""The safety checker that a model ships with: what the demo shows of its pictures has passed it."""

import functools
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from align.models.hub import model_index, reach
from align.models.load import best_device, locate
from align.runs.folder import to_pil

HIDDEN = "the model's safety checker has blacked out {} of {}"


def ships(model: str) -> bool:
    """Whether a folder or Hub model has a safety checker; single files bring none."""
    source, _ = locate(model, None)
    if not isinstance(source, str) and source.is_file():
        return False
    kind = model_index(source).get("safety_checker")
    return isinstance(kind, list) and kind[-1] is not None


@functools.lru_cache(maxsize=2)
def checker(model: str) -> tuple[Any, Any]:
    """A model's checker on the best device, and what prepares pictures for it."""
    from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    source, _ = locate(model, None)
    found: Any = reach(
        source, StableDiffusionSafetyChecker.from_pretrained, source, subfolder="safety_checker"
    )
    prepare = reach(
        source, CLIPImageProcessorPil.from_pretrained, source, subfolder="feature_extractor"
    )
    return found.eval().to(best_device()), prepare


@torch.no_grad()
def screened(
    model: str, images: Float[Tensor, "b 3 h w"]
) -> tuple[Float[Tensor, "b 3 h w"], list[str]]:
    """The images in [0, 1], black where the model's checker objects, and a warning if it does.

    Images of a model without one are returned as they are.
    """
    if not ships(model):
        return images, []
    check, prepare = checker(model)
    pixels = prepare([to_pil(image) for image in images], return_tensors="pt").pixel_values
    _, objections = check(clip_input=pixels.to(check.device), images=images.clone())
    bad = torch.tensor(objections, device=images.device)
    if not bad.any():
        return images, []
    hidden = images.masked_fill(bad[:, None, None, None], 0.0)
    return hidden, [HIDDEN.format(int(bad.sum()), len(images))]
