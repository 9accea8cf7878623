"""`scenes-vqa`: answers the yes/no questions that a prompt decomposes into, for the scenes world.

score = mean over the prompt's assertions of log p(yes), at most 0. DA-Score (Singh & Zheng 2023)
averages p(yes); the logarithm keeps the gradient of a fact that is clearly wrong, as in VQAScore's
log-likelihood (Lin et al. 2024).
"""

import re

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from align.language.decompose import decompose
from align.rewards.facts import Fact, in_rows
from align.rewards.scenes_layers import (
    AttentionBlock,
    SpatialTokens,
    load_weights,
    make_trunk,
    prepare,
    read_config,
    refuse_argument,
)
from align.scenes.grammar import COLORS, NUMBERS, PLURALS, SHAPES, SIZES, TEXTURES

NAME = "scenes-vqa"
CONFIG = {"widths": [16, 32, 48], "width": 64, "heads": 4, "image_layers": 1, "layers": 2}
QUESTION_LENGTH = 24
WORDS = (
    "<pad>", "<unknown>", "is", "are", "there", "a", "an", "the", "all", "exactly", "of", "in",
    "left", "right", "above", "below", "front", "behind",
    *NUMBERS, *SIZES, *TEXTURES, *COLORS, *SHAPES, *PLURALS.values(),
)  # fmt: skip
_INDEX = {word: index for index, word in enumerate(WORDS)}


def question_ids(questions: list[str]) -> Int[Tensor, "q n"]:
    """Word indices, padded with 0 to `QUESTION_LENGTH`; words nobody trained on become 1."""
    ids = torch.zeros(len(questions), QUESTION_LENGTH, dtype=torch.long)
    for row, question in zip(ids, questions, strict=True):
        words = re.findall(r"[a-z]+", question.lower())[:QUESTION_LENGTH]
        row[: len(words)] = torch.tensor([_INDEX.get(word, 1) for word in words])
    return ids


class ScenesVqa(nn.Module):
    """Question words look at each other, then at the 8x8 places; the first word answers."""

    def __init__(self, widths: list[int], width: int, heads: int, image_layers: int, layers: int):
        super().__init__()
        a, b, c = widths
        self.trunk = make_trunk((a, b, c))
        self.widen = nn.Conv2d(c, width, 1)
        self.places = SpatialTokens(width, heads, image_layers)
        self.words = nn.Embedding(len(WORDS), width)
        self.positions = nn.Parameter(0.02 * torch.randn(QUESTION_LENGTH, width))
        self.reading = nn.ModuleList(AttentionBlock(width, heads) for _ in range(layers))
        self.looking = nn.ModuleList(
            AttentionBlock(width, heads, context_width=width) for _ in range(layers)
        )
        self.answer = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 1))

    def logits(
        self,
        images: Float[Tensor, "b 3 h w"],
        ids: Int[Tensor, "q n"],
        owner: Int[Tensor, " q"],
    ) -> Float[Tensor, " q"]:
        """log p(yes) - log p(no) of question i about image `owner[i]`."""
        places = self.places(self.widen(self.trunk(prepare(images, self.positions))))
        known: Bool[Tensor, "q n"] = ids > 0
        x = self.words(ids) + self.positions[: ids.shape[1]]
        for read, look in zip(self.reading, self.looking, strict=True):
            x = look(read(x, mask=known), places, owner=owner)
        return self.answer(x[:, 0]).squeeze(-1)

    def forward(self, images: Float[Tensor, "b 3 h w"], prompts: list[str]) -> Float[Tensor, " b"]:
        """Mean log p(yes) over each prompt's assertions, <= 0; images in [0, 1]."""
        log_yes, owner, counts = self.answers(images, questions_of(prompts))
        return log_yes.new_zeros(len(prompts)).index_add(0, owner, log_yes) / counts

    def explain(self, images: Float[Tensor, "b 3 h w"], prompts: list[str]) -> list[list[Fact]]:
        """p(yes) of each prompt's questions about its picture."""
        questions = questions_of(prompts)
        return in_rows(questions, self.answers(images, questions)[0].exp())

    def answers(
        self, images: Float[Tensor, "b 3 h w"], questions: list[list[str]]
    ) -> tuple[Float[Tensor, " q"], Int[Tensor, " q"], Int[Tensor, " b"]]:
        """log p(yes) of all questions in order, the picture of each, their number by picture."""
        ids = question_ids([q for per_image in questions for q in per_image])
        counts = torch.tensor([len(per_image) for per_image in questions])
        owner = torch.arange(len(questions)).repeat_interleave(counts)
        device = self.positions.device
        ids, owner, counts = ids.to(device), owner.to(device), counts.to(device)
        return F.logsigmoid(self.logits(images, ids, owner)), owner, counts


def questions_of(prompts: list[str]) -> list[list[str]]:
    """The yes/no questions that each prompt decomposes into."""
    return [[a.question for a in decompose(prompt)] for prompt in prompts]


def load(argument: str | None, device) -> ScenesVqa:
    """The reward `scenes-vqa`, frozen.

    Raises:
        FileNotFoundError: this installation has no weights for it.
    """
    refuse_argument(NAME, argument)
    model = ScenesVqa(**read_config(NAME)["model"])
    load_weights(model, NAME)
    return model.to(device or "cpu")
