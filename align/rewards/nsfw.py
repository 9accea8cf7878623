"""`nsfw`: LAION's NSFW head on CLIP ViT-H/14, for judging; 1 is safe, 0 is not.

score = 1 - f(e), e the unit image feature of `laion/CLIP-ViT-H-14-laion2B-s32B-b79K`; f, seven
linear layers with ReLU after the first five, was trained by squared error towards 1 for what is
not safe, so that scores may lie a little outside [0, 1] (`h14_nsfw_model.py` of
github.com/LAION-AI/CLIP-based-NSFW-Detector). The prompt is not looked at.
"""

from pathlib import Path

from jaxtyping import Float
from torch import Tensor, nn

from align.rewards.catalogue import CLIP_H, sources
from align.rewards.clip_tower import ClipTower, load_clip
from align.rewards.weights import fill, find, locate_file, read_checkpoint, shared

NAME = "nsfw"
# Places of the linear layers in the original, whose dropouts and activations are counted too.
LAYERS = (0, 3, 6, 9, 12, 15, 16)


class Nsfw(nn.Module):
    """1 - f(e), see above."""

    def __init__(self, tower: ClipTower, head: nn.Module):
        super().__init__()
        self.tower = tower
        self.head = head

    def forward(self, images: Float[Tensor, "b 3 h w"], prompts: list[str]) -> Float[Tensor, " b"]:
        """Scores. Raises ValueError for images smaller than one patch."""
        return 1 - self.head(self.tower.images(images)).squeeze(-1)


def read_head(path: Path) -> nn.Sequential:
    """The head of an original file, without its dropouts.

    Raises ValueError for a file that is damaged or something else.
    """
    tensors = read_checkpoint(path)
    wanted = [f"layers.{place}.weight" for place in LAYERS]
    if not all(key in tensors and tensors[key].ndim == 2 for key in wanted):
        raise ValueError(f"{path} is not LAION's NSFW head: it needs {wanted[0]} to {wanted[-1]}")
    layers: list[nn.Module] = []
    for key in wanted:
        wide, narrow = tensors[key].shape
        layers += [nn.Linear(narrow, wide), nn.ReLU()]
    kept = [*layers[: 2 * (len(LAYERS) - 2)], layers[-4], layers[-2]]
    places = [i for i, layer in enumerate(kept) if isinstance(layer, nn.Linear)]
    names = dict(zip((f"layers.{place}" for place in LAYERS), places, strict=True))
    renamed = {
        f"{names.get(key.rpartition('.')[0], key)}.{key.rpartition('.')[2]}": value
        for key, value in tensors.items()
    }
    return fill(nn.Sequential(*kept), renamed, path)


def load(argument: str | None, device) -> Nsfw:
    """The judge `nsfw`, frozen; `argument`: the head's file, or a folder with it (and the CLIP).

    Raises:
        FileNotFoundError: weights are not on this machine (says how to fetch them).
        ValueError: they are damaged or of another size, or an argument that is no path.
    """
    file, term, given = locate_file(NAME, sources(NAME)[0], argument)
    folder = find(CLIP_H, term, given)
    model, tokenizer = shared(("clip", folder, device), lambda: load_clip(folder))
    head = read_head(file)
    width = head[0].in_features
    if width != model.config.projection_dim:
        raise ValueError(
            f"{file} reads features of {width} numbers, the CLIP of {folder} gives "
            f"{model.config.projection_dim}"
        )
    return Nsfw(ClipTower(model, tokenizer, NAME), head).to(device or "cpu")
