"""Parts that the embedded reward models share: image trunk, attention block, input, weights.

Every activation is smooth (SiLU, softmax, GroupNorm), so that image gradients are well behaved and
agree with finite differences.
"""

import json
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from safetensors.torch import load_file, save
from torch import Tensor, nn

from align.runs.files import write_atomic, write_json

EMBEDDED = Path(__file__).parent.parent / "embedded"
IMAGE_SIZE = 64


def prepare(images: Float[Tensor, "b 3 h w"], like: Tensor) -> Float[Tensor, "b 3 64 64"]:
    """Images in [0, 1] to [-1, 1], 64x64, in the dtype and on the device of `like`."""
    images = images.to(like)
    if images.shape[-2:] != (IMAGE_SIZE, IMAGE_SIZE):
        images = F.interpolate(
            images, (IMAGE_SIZE, IMAGE_SIZE), mode="bilinear", antialias=True, align_corners=False
        )
    return 2 * images - 1


class ResidualBlock(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.norm1 = nn.GroupNorm(8, channels)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm2 = nn.GroupNorm(8, channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        h = self.conv1(F.silu(self.norm1(x)))
        return x + self.conv2(F.silu(self.norm2(h)))


def make_trunk(widths: tuple[int, int, int], blocks: tuple[int, int] = (1, 1)) -> nn.Sequential:
    """Convolutions from [b, 3, 64, 64] to [b, widths[2], 8, 8], through 32x32 and 16x16."""
    a, b, c = widths
    return nn.Sequential(
        nn.Conv2d(3, a, 4, stride=2, padding=1),
        nn.SiLU(),
        nn.Conv2d(a, b, 4, stride=2, padding=1),
        *(ResidualBlock(b) for _ in range(blocks[0])),
        nn.GroupNorm(8, b),
        nn.SiLU(),
        nn.Conv2d(b, c, 3, stride=2, padding=1),
        *(ResidualBlock(c) for _ in range(blocks[1])),
        nn.GroupNorm(8, c),
    )


class AttentionBlock(nn.Module):
    """Pre-norm attention from `x` to `context` (itself if None), then an MLP, both residual."""

    def __init__(self, width: int, heads: int, context_width: int | None = None, expand: int = 2):
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width)
        self.to_q = nn.Linear(width, width)
        self.to_kv = nn.Linear(context_width or width, 2 * width)
        self.to_out = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, expand * width), nn.SiLU(), nn.Linear(expand * width, width)
        )

    def forward(
        self,
        x: Float[Tensor, "b n w"],
        context: Float[Tensor, "images m c"] | None = None,
        mask: Tensor | None = None,
        owner: Tensor | None = None,
    ) -> Float[Tensor, "b n w"]:
        """`mask` [b, m] is True where `context` may be looked at; row i looks at `owner[i]`'s."""
        y = self.norm1(x)
        kv = self.to_kv(y if context is None else context)
        k, v = (kv if owner is None else kv[owner]).chunk(2, dim=-1)
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in (self.to_q(y), k, v))
        # written out: for such short rows PyTorch's fused attention takes longer on a CPU, in
        # bfloat16 its backward pass ten times as long
        similarity = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
        if mask is not None:
            similarity = similarity.masked_fill(~mask[:, None, None, :], -torch.inf)
        attended = similarity.softmax(-1) @ v
        x = x + self.to_out(attended.transpose(1, 2).flatten(2))
        return x + self.mlp(self.norm2(x))


class SpatialTokens(nn.Module):
    """An 8x8 feature map as 64 tokens that know their place and have looked at each other."""

    def __init__(self, width: int, heads: int, layers: int):
        super().__init__()
        self.position = nn.Parameter(0.02 * torch.randn(64, width))
        self.layers = nn.ModuleList(AttentionBlock(width, heads) for _ in range(layers))

    def forward(self, features: Float[Tensor, "b c 8 8"]) -> Float[Tensor, "b 64 c"]:
        x = features.flatten(2).transpose(1, 2) + self.position
        for layer in self.layers:
            x = layer(x)
        return x


def save_weights(weights: dict[str, Tensor], config: dict, folder: Path) -> None:
    """Write `model.safetensors` (fp16) and `config.json`, each atomically."""
    halves = {k: v.half().contiguous() for k, v in weights.items()}
    write_atomic(folder / "model.safetensors", save(halves, metadata={"format": "pt"}))
    write_json(folder / "config.json", config)


def read_config(name: str) -> dict:
    """The stored configuration of the embedded reward `name`.

    Raises:
        FileNotFoundError: this installation has no weights for it.
    """
    path = EMBEDDED / "rewards" / name / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"the weights of reward {name!r} are not installed: no {path}")
    return json.loads(path.read_text())


def load_weights(model: nn.Module, name: str) -> None:
    """Fill `model` with the stored fp16 weights of the embedded reward `name`, frozen, for use."""
    weights = load_file(EMBEDDED / "rewards" / name / "model.safetensors")
    model.load_state_dict({k: v.float() for k, v in weights.items()})
    model.requires_grad_(False).eval()


def refuse_argument(name: str, argument: str | None) -> None:
    """Raise ValueError if an argument was given to a reward that takes none."""
    if argument is not None:
        raise ValueError(f"reward {name!r} takes no argument, got {argument!r}")
