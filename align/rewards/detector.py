"""`detector`: objects that a detector sees, OWL-ViT (any noun) or YOLOS (COCO's 80).

    detector                    are the prompt's objects there?  mean over objects of log p(any)
    detector:present=dog        is there a dog?                  log p(any)
    detector:remove=person      is there nobody?                 log (1 - p(any))
    detector:count=dog:3        are there three dogs?            -(expected number - 3)^2

and `;model=PATH_OR_HUB_ID` after any of them, or alone. Detectors report what passes a threshold,
and what does not has no gradient. Here every query of the detector counts: with l_q the log-odds
that query q found the object,

    p(any) = sigmoid(logsumexp_q l_q)

which follows the strongest query and leaves none without gradient. The expected number is

    sum_q p_q^2 / sum_r p_r [r overlaps q],   p = sigmoid(l)

where boxes overlap from half of their union on: of several boxes around one object one counts.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn
from transformers import CLIPTokenizer, OwlViTForObjectDetection, YolosForObjectDetection

from align.config.checks import one_of
from align.language.assertions import with_article
from align.language.decompose import decompose
from align.rewards.catalogue import sources
from align.rewards.resize import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    check_size,
    normalise,
    resize,
)
from align.rewards.weights import find, load_model, local_path, model_type, shared
from align.rewards.words import token_ids

NAME = "detector"
MODES = ("present", "remove", "count")
OVERLAP = 0.5
YOLOS_SIDE = 512  # pixels of the shorter side; VADER's, its processor has 800


@dataclass(frozen=True)
class Wish:
    """What to look for: `noun` None means the objects of each prompt."""

    mode: str = "present"
    noun: str | None = None
    count: int = 0
    model: str | None = None


class OwlVit(nn.Module):
    """Log-odds and boxes of named objects, by text."""

    def __init__(self, model: OwlViTForObjectDetection, tokenizer: CLIPTokenizer):
        super().__init__()
        self.model: Any = model  # transformers' configs are wide unions
        self.tokenizer = tokenizer

    def forward(
        self, images: Float[Tensor, "b 3 h w"], nouns: list[list[str]]
    ) -> tuple[Float[Tensor, "b q n"], Float[Tensor, "b q 4"]]:
        """Log-odds that each query found `nouns[i][j]` in image i, and boxes (cx, cy, w, h)."""
        vision, text = self.model.config.vision_config, self.model.config.text_config
        check_size(images, vision.patch_size, NAME)
        weight = self.model.class_head.dense0.weight
        size = (vision.image_size, vision.image_size)
        asked = [f"a photo of {with_article(noun)}" for row in nouns for noun in row]
        words = token_ids(self.tokenizer, asked, text.max_position_embeddings, NAME)
        seen = self.model(
            input_ids=words["input_ids"].to(weight.device),
            attention_mask=words["attention_mask"].to(weight.device),
            pixel_values=normalise(resize(images.to(weight), size)),
        )
        return seen.logits, seen.pred_boxes

    def check(self, noun: str) -> None:
        """Any noun will do."""


class Yolos(nn.Module):
    """Log-odds and boxes of the classes that a YOLOS was trained on."""

    def __init__(self, model: YolosForObjectDetection):
        super().__init__()
        self.model: Any = model  # transformers' configs are wide unions
        self.classes = {name: int(i) for i, name in (model.config.id2label or {}).items()}

    def forward(
        self, images: Float[Tensor, "b 3 h w"], nouns: list[list[str]]
    ) -> tuple[Float[Tensor, "b q n"], Float[Tensor, "b q 4"]]:
        """As `OwlVit.forward`; its softmax over classes and nothing, as log-odds of one class."""
        config = self.model.config
        check_size(images, config.patch_size, NAME)
        weight = self.model.class_labels_classifier.layers[0].weight
        shortest = min(YOLOS_SIDE, *config.image_size)
        size = yolos_size(images.shape[-2:], shortest, config.patch_size)
        view = normalise(resize(images.to(weight), size, "bilinear"), IMAGENET_MEAN, IMAGENET_STD)
        seen = self.model(view)
        index = torch.tensor([[self.classes[noun] for noun in row] for row in nouns])
        chosen = F.one_hot(index, seen.logits.shape[-1]).bool().to(weight.device)[:, None]
        logits = seen.logits[:, :, None]  # (b, q, 1, classes + 1)
        others = logits.masked_fill(chosen, -torch.inf).logsumexp(-1)
        return logits.masked_fill(~chosen, -torch.inf).logsumexp(-1) - others, seen.pred_boxes

    def check(self, noun: str) -> None:
        """Raise ValueError for a noun that is none of its classes."""
        if noun not in self.classes:
            raise ValueError(f"the detector does not know {noun!r}; {one_of(noun, self.classes)}")


class Detector(nn.Module):
    """See the module's docstring; at most 0."""

    def __init__(self, tower: OwlVit | Yolos, wish: Wish):
        super().__init__()
        self.tower = tower
        self.wish = wish

    def forward(self, images: Float[Tensor, "b 3 h w"], prompts: list[str]) -> Float[Tensor, " b"]:
        noun = self.wish.noun
        nouns = [[noun] if noun is not None else self.objects(prompt) for prompt in prompts]
        most = max(map(len, nouns))
        # The last object fills up shorter rows; a weight of 0 takes its repetitions out again.
        filled = [row + row[-1:] * (most - len(row)) for row in nouns]
        odds, boxes = self.tower(images, filled)
        scores = torch.stack([self.score(odds[..., i], boxes) for i in range(most)], dim=1)
        there = torch.tensor([[float(i < len(row)) for i in range(most)] for row in nouns])
        there = there.to(scores)
        return (scores * there).sum(1) / there.sum(1)

    def objects(self, prompt: str) -> list[str]:
        """The objects of a prompt that the detector can look for.

        Raises ValueError where there is none.
        """
        nouns = dict.fromkeys(a.subject.noun for a in decompose(prompt) if a.subject)
        if isinstance(self.tower, OwlVit):
            return list(nouns) or [prompt]
        known = [noun for noun in nouns if noun in self.tower.classes]
        if not known:
            raise ValueError(
                f"the detector knows no object of {prompt!r}; it knows "
                f"{', '.join(sorted(self.tower.classes))}"
            )
        return known

    def score(
        self, odds: Float[Tensor, "b q"], boxes: Float[Tensor, "b q 4"]
    ) -> Float[Tensor, " b"]:
        """What the wish makes of the log-odds of each query for one noun."""
        if self.wish.mode == "count":
            return -(expected_number(odds, boxes) - self.wish.count).square()
        found = odds.logsumexp(-1)
        return F.logsigmoid(-found if self.wish.mode == "remove" else found)


def yolos_size(size: Sequence[int], shortest: int, patch: int) -> tuple[int, int]:
    """Height and width for YOLOS: shorter side `shortest`, both cut to multiples of a patch."""
    scale = shortest / min(size)
    height, width = (max(patch, int(side * scale) // patch * patch) for side in size)
    return height, width


def expected_number(
    odds: Float[Tensor, "b q"], boxes: Float[Tensor, "b q 4"]
) -> Float[Tensor, " b"]:
    """How many objects, counting boxes around one object once; see the module's docstring."""
    p = odds.sigmoid()
    return (p.square() / (p[:, None] * overlapping(boxes.detach())).sum(-1).clamp_min(1e-12)).sum(
        -1
    )


def overlapping(boxes: Float[Tensor, "b q 4"]) -> Bool[Tensor, "b q q"]:
    """Which boxes (cx, cy, w, h) share at least half of their union; each does with itself."""
    low, high = boxes[..., :2] - boxes[..., 2:] / 2, boxes[..., :2] + boxes[..., 2:] / 2
    inner_low = torch.maximum(low[:, :, None], low[:, None])
    inner_high = torch.minimum(high[:, :, None], high[:, None])
    inner = (inner_high - inner_low).clamp_min(0).prod(-1)
    area = boxes[..., 2:].prod(-1)
    same = torch.eye(boxes.shape[1], dtype=torch.bool, device=boxes.device)
    return (inner >= OVERLAP * (area[:, :, None] + area[:, None] - inner)) | same


def read_wish(argument: str | None) -> Wish:
    """The wish of an argument. Raises ValueError for what cannot be read, saying what can."""
    wish = Wish()
    for part in argument.split(";") if argument else ():
        key, _, value = (piece.strip() for piece in part.partition("="))
        if key == "model" and value:
            wish = Wish(wish.mode, wish.noun, wish.count, value)
            continue
        noun, _, number = value.rpartition(":") if key == "count" else (value, "", "0")
        if key not in MODES or not noun or not number.isdigit() or wish.noun is not None:
            raise ValueError(
                f"detector:{argument} cannot be read at {part!r}; allowed are one of present=NOUN, "
                "remove=NOUN, count=NOUN:NUMBER, and model=FOLDER_OR_HUB_ID, joined by ;"
            )
        wish = Wish(key, noun, int(number), wish.model)
    return wish


def load(argument: str | None, device) -> Detector:
    """The reward `detector`, frozen; see the module's docstring for its argument.

    Raises:
        FileNotFoundError: its weights are not on this machine (says how to fetch them).
        ValueError: an argument that cannot be read, a noun that the detector does not know, a
            model that is neither an OWL-ViT nor a YOLOS, damaged weights.
    """
    wish = read_wish(argument)
    given = local_path(wish.model)
    term = NAME if wish.model is None else f"{NAME}:model={wish.model}"
    if given is None:
        folder = find(sources(NAME, term.partition(":")[2] or None)[0], term)
    else:
        folder = given
    tower = shared(("detector", folder, device), lambda: _load_tower(folder))
    if wish.noun is not None:
        tower.check(wish.noun)
    return Detector(tower, wish).to(device or "cpu")


def _load_tower(folder: Path) -> OwlVit | Yolos:
    kind = model_type(folder)
    if kind == "owlvit":
        model = load_model(OwlViTForObjectDetection, folder)
        return OwlVit(model, CLIPTokenizer.from_pretrained(folder))
    if kind == "yolos":
        return Yolos(load_model(YolosForObjectDetection, folder))
    raise ValueError(f"{folder} is a {kind}; a detector is an owlvit or a yolos")
