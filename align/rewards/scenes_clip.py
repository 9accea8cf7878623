"""`scenes-clip`: a dual encoder for the scenes world, scored as CLIPScore (Hessel et al. 2021).

score = 2.5 cos(image, text), in [-2.5, 2.5]. CLIPScore's clamp at 0 is left out: it stops
gradients.
"""

import json

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from align.rewards.scenes_layers import (
    EMBEDDED,
    SpatialTokens,
    load_weights,
    make_trunk,
    prepare,
    read_config,
    refuse_argument,
)

NAME = "scenes-clip"
SCALE = 2.5
TEXT_FOLDER = EMBEDDED / "rewards" / NAME / "text_encoder"
CONFIG = {"widths": [16, 48, 96], "heads": 4, "layers": 1, "hidden": 256, "width": 192}
PREFIX = "text_model."  # of text-encoder keys on disk, as diffusers and older transformers want it


class ImageTower(nn.Module):
    """Images to unit vectors: convolutions, attention over 8x8 places, mean of features."""

    def __init__(self, widths: list[int], heads: int, layers: int, hidden: int, width: int):
        super().__init__()
        a, b, c = widths
        self.trunk = make_trunk((a, b, c))
        self.tokens = SpatialTokens(c, heads, layers)
        self.expand = nn.Sequential(nn.LayerNorm(c), nn.Linear(c, hidden), nn.SiLU())
        self.project = nn.Linear(hidden, width)
        self.text_projection = nn.Linear(width, width, bias=False)
        self.log_scale = nn.Parameter(torch.tensor(2.66))  # log(1 / 0.07), as CLIP begins

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b d"]:
        """Unit image features from images in [0, 1]."""
        x = self.tokens(self.trunk(prepare(images, self.project.weight)))
        return F.normalize(self.project(self.expand(x).mean(1)), dim=-1)

    def text_features(self, pooled: Float[Tensor, "b d"]) -> Float[Tensor, "b d"]:
        """Unit text features from the text encoder's state at the end token."""
        return F.normalize(self.text_projection(pooled), dim=-1)


def load_tokenizer() -> CLIPTokenizer:
    """The tokenizer that all embedded models share."""
    return CLIPTokenizer.from_pretrained(EMBEDDED / "scenes" / "tokenizer")


def text_config(tokenizer: CLIPTokenizer, width: int = 192) -> CLIPTextConfig:
    """The text encoder of the embedded models: 4 layers, 32 positions."""
    start: int = tokenizer.convert_tokens_to_ids("<|startoftext|>")  # pyright: ignore[reportAssignmentType]
    end: int = tokenizer.convert_tokens_to_ids("<|endoftext|>")  # pyright: ignore[reportAssignmentType]
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=32,
        projection_dim=width,
        bos_token_id=start,
        eos_token_id=end,
        pad_token_id=end,
    )


def tokenize(tokenizer: CLIPTokenizer, prompts: list[str]) -> Int[Tensor, "b n"]:
    """Token ids padded to the longest prompt; padding does not reach a causal model's end token."""
    batch = tokenizer(
        prompts, padding="longest", truncation=True, max_length=32, return_tensors="pt"
    )
    return batch.input_ids


def load_text_encoder() -> CLIPTextModel:
    """The stored text encoder in float32, frozen.

    Raises:
        FileNotFoundError: this installation has no weights for it.
    """
    read_config(NAME)
    config = CLIPTextConfig(**json.loads((TEXT_FOLDER / "config.json").read_text()))
    model = CLIPTextModel(config)
    stored = load_file(TEXT_FOLDER / "model.safetensors")
    # transformers 5 dropped the prefix from its own modules
    prefix = PREFIX if next(iter(model.state_dict())).startswith(PREFIX) else ""
    model.load_state_dict({prefix + k.removeprefix(PREFIX): v.float() for k, v in stored.items()})
    return model.requires_grad_(False).eval()


class ScenesClip(nn.Module):
    """2.5 cos(image, prompt); see the module's docstring."""

    def __init__(self, image_tower: ImageTower, text_encoder: CLIPTextModel):
        super().__init__()
        self.image_tower = image_tower
        self.text_encoder = text_encoder
        self.tokenizer = load_tokenizer()

    def forward(self, images: Float[Tensor, "b 3 h w"], prompts: list[str]) -> Float[Tensor, " b"]:
        """Scores in [-2.5, 2.5]; images in [0, 1]."""
        pixels = self.image_tower(images)
        ids = tokenize(self.tokenizer, prompts).to(pixels.device)
        words = self.image_tower.text_features(self.text_encoder(ids).pooler_output)
        return SCALE * (pixels * words).sum(-1)


def load(argument: str | None, device) -> ScenesClip:
    """The reward `scenes-clip`, frozen.

    Raises:
        FileNotFoundError: this installation has no weights for it.
    """
    refuse_argument(NAME, argument)
    tower = ImageTower(**read_config(NAME)["model"])
    load_weights(tower, NAME)
    return ScenesClip(tower, load_text_encoder()).to(device or "cpu")
