"""`aesthetic`: LAION's aesthetic predictors on CLIP ViT-L/14, how much people like a picture.

v2 (`sac+logos+ava1-l14-linearMSE`) is five linear layers without activations between them, dropout
aside, so one affine map of the unit feature; v1 (`sa_0_4_vit_l_14`) is a single layer:

    score = w . e + b,   e = CLIP(image) / |CLIP(image)|

The published weights fold to 18.0 cos(w, e) + 5.24 (v2) and 28.4 cos(w, e) + 3.53 (v1): the 1 to 10
of the raters is no bound. The prompt is not looked at.
"""

from pathlib import Path

from jaxtyping import Float
from torch import Tensor, nn

from align.rewards.catalogue import AESTHETIC_V1, AESTHETIC_V2, CLIP_L
from align.rewards.clip_tower import ClipTower, load_clip
from align.rewards.weights import find, local_path, read_checkpoint, shared

NAME = "aesthetic"
HEADS = {"v1": AESTHETIC_V1, "v2": AESTHETIC_V2}


class Aesthetic(nn.Module):
    """w . e + b of the unit image feature e."""

    def __init__(self, tower: ClipTower, head: nn.Linear):
        super().__init__()
        self.tower = tower
        self.head = head

    def forward(self, images: Float[Tensor, "b 3 h w"], prompts: list[str]) -> Float[Tensor, " b"]:
        return self.head(self.tower.images(images)).squeeze(-1)


def fold(tensors: dict[str, Tensor], path: Path) -> nn.Linear:
    """One linear layer that equals the linear layers of a head, applied in the order of their keys.

    Computed in float64.

    Raises:
        ValueError: the tensors are no chain of linear layers that ends in one number.
    """
    weights = sorted(
        (k for k in tensors if k.endswith("weight")),
        key=lambda key: [int(part) if part.isdigit() else part for part in key.split(".")],
    )
    total = None
    try:
        for key in weights:
            w, b = tensors[key].double(), tensors[f"{key.removesuffix('weight')}bias"].double()
            total = (w, b) if total is None else (w @ total[0], w @ total[1] + b)
    except (KeyError, RuntimeError) as error:
        raise ValueError(f"{path} is no aesthetic head: its layers do not follow") from error
    if total is None or total[0].ndim != 2 or total[0].shape[0] != 1:
        raise ValueError(f"{path} is no aesthetic head: it does not end in one number")
    head = nn.Linear(total[0].shape[1], 1)
    head.load_state_dict({"weight": total[0].float(), "bias": total[1].float()})
    return head.requires_grad_(False)


def load(argument: str | None, device) -> Aesthetic:
    """The reward `aesthetic`, frozen; `argument`: `v2` (default), `v1`, or a path.

    A path is a head's file, or a folder that holds the head of v2 (or only that of v1) and, under
    its own name or directly, CLIP ViT-L/14.

    Raises:
        FileNotFoundError: weights are not on this machine (says how to fetch them).
        ValueError: they are damaged or no head for this CLIP, or an argument that is neither.
    """
    path = local_path(argument)
    if path is None and argument not in (None, *HEADS):
        raise ValueError(f"aesthetic:{argument} is neither v1, v2 nor a path")
    term = NAME if argument is None else f"{NAME}:{argument}"
    given = None if path is None else path if path.is_dir() else path.parent
    folder = find(CLIP_L, term, given)
    file = path if path is not None and path.is_file() else _head(argument, term, given)
    model, tokenizer = shared(("clip", folder, device), lambda: load_clip(folder))
    head = fold(read_checkpoint(file), file)
    if head.in_features != model.config.projection_dim:
        raise ValueError(
            f"{file} reads features of {head.in_features} numbers, the CLIP of {folder} gives "
            f"{model.config.projection_dim}"
        )
    return Aesthetic(ClipTower(model, tokenizer, NAME), head).to(device or "cpu")


def _head(argument: str | None, term: str, given: Path | None) -> Path:
    """The file of a head: of the version asked for, in a given folder of the one that is there."""
    source = HEADS.get(argument or "v2", AESTHETIC_V2)
    if given is not None and not (given / source.files[0]).is_file():
        source = AESTHETIC_V1 if (given / AESTHETIC_V1.files[0]).is_file() else source
    return find(source, term, given) / source.files[0]
