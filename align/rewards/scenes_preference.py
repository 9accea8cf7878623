"""`scenes-preference`: which of two pictures fits a prompt better, for the scenes world.

Like ImageReward (Xu et al. 2023): words look at the picture, one number comes out, trained with
the Bradley-Terry likelihood on ranked pairs. Unbounded; only differences for one prompt mean
something. The words come from the text encoder of `scenes-clip`.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from transformers import CLIPTextModel

from align.rewards.scenes_clip import load_text_encoder, load_tokenizer, tokenize
from align.rewards.scenes_layers import (
    AttentionBlock,
    SpatialTokens,
    load_weights,
    make_trunk,
    prepare,
    read_config,
    refuse_argument,
)

NAME = "scenes-preference"
CONFIG = {"widths": [16, 32, 48], "heads": 4, "image_layers": 1, "layers": 2, "text_width": 192}


class PreferenceHead(nn.Module):
    """The picture's part and the joint part; the text encoder stays outside."""

    def __init__(
        self, widths: list[int], heads: int, image_layers: int, layers: int, text_width: int
    ):
        super().__init__()
        a, b, width = widths
        self.trunk = make_trunk((a, b, width))
        self.places = SpatialTokens(width, heads, image_layers)
        self.words = nn.Sequential(nn.LayerNorm(text_width), nn.Linear(text_width, width))
        self.looking = nn.ModuleList(
            AttentionBlock(width, heads, context_width=width) for _ in range(layers)
        )
        self.reading = nn.ModuleList(AttentionBlock(width, heads) for _ in range(layers))
        self.score = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 1))

    def forward(
        self,
        images: Float[Tensor, "b 3 h w"],
        states: Float[Tensor, "b n t"],
        known: Bool[Tensor, "b n"],
    ) -> Float[Tensor, " b"]:
        """Scores from images in [0, 1] and the text encoder's states, the end token last known."""
        places = self.places(self.trunk(prepare(images, self.places.position)))
        x = self.words(states.to(places))
        for look, read in zip(self.looking, self.reading, strict=True):
            x = read(look(x, places), mask=known)
        end = known.sum(1) - 1
        return self.score(x[torch.arange(len(x), device=x.device), end]).squeeze(-1)


def read_prompts(
    tokenizer, text_encoder: CLIPTextModel, prompts: list[str]
) -> tuple[Float[Tensor, "b n t"], Bool[Tensor, "b n"]]:
    """The text encoder's states and which of them belong to the prompt (its end token included)."""
    ids = tokenize(tokenizer, prompts).to(text_encoder.device)
    ends = ids == tokenizer.eos_token_id  # padding is the same token
    known = ends.cumsum(1) - ends.int() == 0
    return text_encoder(ids).last_hidden_state, known


class ScenesPreference(nn.Module):
    """See the module's docstring."""

    def __init__(self, head: PreferenceHead, text_encoder: CLIPTextModel):
        super().__init__()
        self.head = head
        self.text_encoder = text_encoder
        self.tokenizer = load_tokenizer()

    def forward(self, images: Float[Tensor, "b 3 h w"], prompts: list[str]) -> Float[Tensor, " b"]:
        """Unbounded scores; images in [0, 1]."""
        return self.head(images, *read_prompts(self.tokenizer, self.text_encoder, prompts))


def load(argument: str | None, device) -> ScenesPreference:
    """The reward `scenes-preference`, frozen.

    Raises:
        FileNotFoundError: this installation has no weights for it, or none for `scenes-clip`.
    """
    refuse_argument(NAME, argument)
    head = PreferenceHead(**read_config(NAME)["model"])
    load_weights(head, NAME)
    return ScenesPreference(head, load_text_encoder()).to(device or "cpu")
