"""`hps`: Human Preference Score v2 (arXiv 2306.09341), OpenCLIP ViT-H/14 trained on preferences.

score = cos(image, prompt), without the logit scale. The longer side of a picture becomes 224 and
the rest is black, as the authors' evaluation (`light_augmentation`) has it; many ports squeeze or
crop instead. Both published versions have one layout: 2.1 was trained on more data.
"""

from jaxtyping import Float
from torch import Tensor, nn
from transformers import CLIPTokenizer

from align.rewards.catalogue import sources
from align.rewards.clip_tower import ClipTower, load_open_clip
from align.rewards.resize import letterbox
from align.rewards.weights import CHECKPOINTS, find, local_path
from align.rewards.words import clean

NAME = "hps"
VERSIONS = ("2.0", "2.1")


class Hps(nn.Module):
    """cos(image, prompt), in [-1, 1]; good pictures have some 0.3."""

    def __init__(self, tower: ClipTower):
        super().__init__()
        self.tower = tower

    def forward(self, images: Float[Tensor, "b 3 h w"], prompts: list[str]) -> Float[Tensor, " b"]:
        return self.tower.cosine(images, prompts)


def load(argument: str | None, device) -> Hps:
    """The reward `hps`, frozen; `argument`: `2.1` (default), `2.0`, or a path.

    A path is the checkpoint, or a folder with one; CLIP's tokenizer (`vocab.json`, `merges.txt`) is
    looked for beside it first.

    Raises:
        FileNotFoundError: weights are not on this machine (says how to fetch them).
        ValueError: they are damaged or no such checkpoint, or an argument that is neither.
    """
    path = local_path(argument)
    if path is None and argument not in (None, *VERSIONS):
        raise ValueError(f"hps:{argument} is neither 2.0, 2.1 nor a path")
    term = NAME if argument is None else f"{NAME}:{argument}"
    given = None if path is None else path if path.is_dir() else path.parent
    weights, words = sources(NAME, "2.0" if argument == "2.0" else None)
    if path is None:
        file = find(weights, term) / weights.files[0]
    else:
        file = path if path.is_file() else _only_checkpoint(path)
    tokenizer = CLIPTokenizer.from_pretrained(find(words, term, given))
    tower = ClipTower(load_open_clip(file), tokenizer, NAME, letterbox, clean)
    return Hps(tower).to(device or "cpu")


def _only_checkpoint(folder):
    files = [file for file in sorted(folder.iterdir()) if file.suffix in CHECKPOINTS]
    if len(files) != 1:
        names = ", ".join(file.name for file in files) or "none"
        raise FileNotFoundError(f"{folder} must hold one checkpoint, it has {names}; name the file")
    return files[0]
