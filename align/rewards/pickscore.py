"""`pickscore`: CLIP ViT-H/14 trained on choices between two pictures (arXiv 2305.01569).

score = exp(logit_scale) cos(image, prompt), about 100 cos. Pictures are resized, shorter side
first, and cropped to the middle, as its processor does.
"""

from jaxtyping import Float
from torch import Tensor, nn

from align.rewards.catalogue import sources
from align.rewards.clip_tower import ClipTower, load_clip
from align.rewards.weights import find, local_path

NAME = "pickscore"


class PickScore(nn.Module):
    """exp(logit_scale) cos(image, prompt), in about [-100, 100]; good pictures have some 20."""

    def __init__(self, tower: ClipTower):
        super().__init__()
        self.tower = tower

    def forward(self, images: Float[Tensor, "b 3 h w"], prompts: list[str]) -> Float[Tensor, " b"]:
        return self.tower.model.logit_scale.exp() * self.tower.cosine(images, prompts)


def load(argument: str | None, device) -> PickScore:
    """The reward `pickscore`, frozen; `argument`: a folder with its model and CLIP's tokenizer.

    Raises:
        FileNotFoundError: weights are not on this machine (says how to fetch them).
        ValueError: they are damaged, or an argument that is no folder.
    """
    given = local_path(argument)
    if argument is not None and (given is None or not given.is_dir()):
        raise ValueError(f"pickscore:{argument} is no folder")
    term = NAME if argument is None else f"{NAME}:{argument}"
    weights, words = sources(NAME)
    model, tokenizer = load_clip(find(weights, term, given), find(words, term, given))
    return PickScore(ClipTower(model, tokenizer, NAME)).to(device or "cpu")
