"""`clip`: 100 cos(image, prompt) of any CLIP, as torchmetrics' CLIPScore without its clamp at 0.

Hessel et al. 2021 (arXiv 2104.08718) publish 2.5 max(cos, 0); the clamp stops gradients and is left
out. Pictures are resized, shorter side first, and cropped to the middle.
"""

from jaxtyping import Float
from torch import Tensor, nn

from align.rewards.catalogue import sources
from align.rewards.clip_tower import ClipTower, load_clip
from align.rewards.weights import find, local_path, shared

NAME = "clip"


class Clip(nn.Module):
    """100 cos(image, prompt), in [-100, 100]."""

    def __init__(self, tower: ClipTower):
        super().__init__()
        self.tower = tower

    def forward(self, images: Float[Tensor, "b 3 h w"], prompts: list[str]) -> Float[Tensor, " b"]:
        return 100 * self.tower.cosine(images, prompts)


def load(argument: str | None, device) -> Clip:
    """The reward `clip`, frozen; `argument`: a Hub id of a CLIP, or a folder of one.

    Raises:
        FileNotFoundError: its weights are not on this machine (says how to fetch them).
        ValueError: they are damaged, or an argument that is neither.
    """
    given = local_path(argument)
    if argument is not None and given is None and argument.count("/") != 1:
        raise ValueError(f"clip:{argument} names no Hub id OWNER/NAME and no folder")
    term = NAME if argument is None else f"{NAME}:{argument}"
    source = sources(NAME, argument)[0]
    folder = find(source, term, given)
    model, tokenizer = shared(("clip", folder, device), lambda: load_clip(folder))
    return Clip(ClipTower(model, tokenizer, NAME)).to(device or "cpu")
