"""Qwen2-VL, Qwen2.5-VL and Qwen3-VL: what they answer about a picture, with a gradient to it.

Their processor turns a picture into bytes on its way, and picks the size by the picture's. Here it
is resized, normalised and cut into patches as tensors: the same numbers without a resize, within
Pillow's rounding to bytes with one. Logits come from the last state in float32, since those of
bfloat16 near 20 step by 0.125.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import AutoModelForImageTextToText, AutoTokenizer

from align.rewards.resize import CLIP_MEAN, CLIP_STD, normalise, resize
from align.rewards.weights import load_model, model_type, shared

TYPES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
ASPECT = 200  # of the longer to the shorter side, at most
WORDS_AT_ONCE = 2**14  # of the vocabulary, made float32 at a time


@dataclass(frozen=True)
class QwenView:
    """Sides to multiples of `patch * merge`, pixels between `least` and `most`; patches."""

    patch: int = 14
    merge: int = 2
    frames: int = 2
    least: int = 56 * 56
    most: int = 28 * 28 * 1280
    mean: tuple[float, ...] = CLIP_MEAN
    std: tuple[float, ...] = CLIP_STD

    def size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width that a picture is resized to.

        Raises ValueError where one side is more than 200 times the other.
        """
        if max(height, width) > ASPECT * min(height, width):
            raise ValueError(
                f"images of {height}x{width} pixels are too long for this model: "
                f"one side may be {ASPECT} times the other at most"
            )
        step = self.patch * self.merge
        high, wide = round(height / step) * step, round(width / step) * step
        if high * wide > self.most:
            shrink = math.sqrt(height * width / self.most)
            high = max(step, math.floor(height / shrink / step) * step)
            wide = max(step, math.floor(width / shrink / step) * step)
        elif high * wide < self.least:
            grow = math.sqrt(self.least / (height * width))
            high = math.ceil(height * grow / step) * step
            wide = math.ceil(width * grow / step) * step
        return high, wide

    def __call__(
        self, images: Float[Tensor, "b 3 h w"]
    ) -> tuple[Float[Tensor, "n f"], Int[Tensor, "b 3"]]:
        """Patches of all pictures one after the other, and how many each has (time, down, across).

        Neighbours that the model merges follow each other; a patch's numbers are (channel, time,
        down, across), a picture standing for all moments of its clip.
        """
        high, wide = self.size(*images.shape[-2:])
        pixels = normalise(resize(images, (high, wide)), self.mean, self.std)
        p, m = self.patch, self.merge
        down, across = high // p, wide // p
        cut = pixels.reshape(-1, 3, down // m, m, p, across // m, m, p)
        cut = cut.permute(0, 2, 5, 3, 6, 1, 4, 7)  # b, down, across, m, m, 3, p, p
        cut = cut.unsqueeze(6).expand(*(-1,) * 6, self.frames, -1, -1)
        grid = torch.tensor([[1, down, across]], device=images.device).repeat(len(images), 1)
        return cut.reshape(len(images) * down * across, -1), grid


def read_qwen_view(folder: Path, pixels: int | None = None) -> QwenView:
    """The view of a folder's `preprocessor_config.json`, with at most `pixels` pixels.

    Raises FileNotFoundError without that file, ValueError for fewer pixels than one token has.
    """
    path = folder / "preprocessor_config.json"
    if not path.is_file():
        raise FileNotFoundError(f"{folder} has no preprocessor_config.json")
    told = json.loads(path.read_text(encoding="utf-8"))
    size, plain = told.get("size") or {}, QwenView()
    view = QwenView(
        patch=told.get("patch_size", plain.patch),
        merge=told.get("merge_size", plain.merge),
        frames=told.get("temporal_patch_size", plain.frames),
        least=told.get("min_pixels") or size.get("shortest_edge") or plain.least,
        most=told.get("max_pixels") or size.get("longest_edge") or plain.most,
        mean=tuple(told.get("image_mean") or plain.mean),
        std=tuple(told.get("image_std") or plain.std),
    )
    least = (view.patch * view.merge) ** 2
    if pixels is not None and pixels < least:
        raise ValueError(f"pixels:{pixels} is less than one token of {folder}, {least} pixels")
    if pixels is not None:
        view = replace(view, most=pixels, least=min(view.least, pixels))
    return view


class QwenVl(nn.Module):
    """Answers to questions about a picture.

    Attributes:
        penalty: the repetition penalty of the model's own generation settings.
    """

    def __init__(self, model: Any, tokenizer: Any, view: QwenView, penalty: float = 1.0):
        super().__init__()
        self.model = model
        self.tokenizer = tokenizer
        self.view = view
        self.penalty = penalty
        self.image: int = model.config.image_token_id

    def chat(self, question: str, count: int = 1) -> str:
        """A question behind a picture of `count` tokens, in the model's own chat template.

        Raises ValueError for a question that holds one of the template's marks.
        """
        return chat_text(self.tokenizer, self.image, question, count, question)

    def words(self, text: str) -> list[int]:
        """The tokens of a text."""
        return self.tokenizer(text, add_special_tokens=False).input_ids

    def reading(self, word: str) -> list[int]:
        """Every token that reads `word`, without blanks around it, whatever its capitals."""
        near = [i for token, i in self.tokenizer.get_vocab().items() if word in token.lower()]
        rows = len(self.model.lm_head.weight)
        return sorted(
            i for i in near if i < rows and self.tokenizer.decode([i]).strip().lower() == word
        )

    def states(
        self, picture: Float[Tensor, "1 3 h w"], questions: list[str], answer: Sequence[int] = ()
    ) -> tuple[Float[Tensor, "q t d"], list[list[int]]]:
        """The last states of each question's end and of the answer's tokens but its last one (t is
        1 without an answer), and the tokens of each question.

        The picture is encoded once; shorter questions are filled up on their left.
        """
        weight = self.model.lm_head.weight
        wide = torch.float64 if weight.dtype == torch.float64 else torch.float32
        patches, grid = self.view(picture.to(weight.device, wide))
        count = len(patches) // self.view.merge**2
        asked = [self.words(self.chat(question, count)) for question in questions]
        told = list(answer[:-1])
        most = max(map(len, asked))
        pad = self.tokenizer.pad_token_id or 0
        ids = torch.tensor([[pad] * (most - len(row)) + row + told for row in asked])
        real = torch.arange(ids.shape[1]) >= torch.tensor([[most - len(row)] for row in asked])
        ids, mask = ids.to(weight.device), real.long().to(weight.device)
        inner = self.model.model
        inner.rope_deltas = None  # of an earlier call
        seen = inner.get_image_features(patches, grid, return_dict=True)
        for name in ("pooler_output", "deepstack_features"):
            if getattr(seen, name, None) is not None:
                setattr(seen, name, self._for_each(getattr(seen, name), len(asked)))
        states = inner(
            input_ids=ids,
            attention_mask=mask,
            image_grid_thw=grid.repeat(len(asked), 1),
            mm_token_type_ids=(ids == self.image).int(),
            mm_encoder_outputs={"image": seen},
            use_cache=False,
        ).last_hidden_state
        return states[:, most - 1 :], asked

    @staticmethod
    def _for_each(features: Any, count: int) -> Any:
        """One picture's features for each of its questions."""
        if isinstance(features, list):  # of several layers
            return [tuple(layer) * count for layer in features]
        return tuple(features) * count

    def logits(
        self, states: Float[Tensor, "*n d"], rows: list[int] | None = None
    ) -> Float[Tensor, "*n v"]:
        """Logits of the whole vocabulary or of some tokens, in float32."""
        weight = self.model.lm_head.weight
        if rows is not None:
            weight = weight[rows]
        if weight.dtype in (torch.float32, torch.float64):
            return F.linear(states, weight)
        parts = weight.split(WORDS_AT_ONCE)
        wide = [checkpoint(_product, states, part, use_reentrant=False) for part in parts]
        return torch.cat(wide, -1)  # pyright: ignore[reportArgumentType]

    def ask(
        self,
        picture: Float[Tensor, "1 3 h w"],
        questions: list[str],
        rows: list[int] | None = None,
        *,
        penalized: bool = False,
    ) -> Float[Tensor, "q v"]:
        """Logits of the answers' first tokens.

        With `penalized`, tokens that stand in the question lose as the model's own generation
        settings say: what scores of `generate` have and raw logits have not.
        """
        states, asked = self.states(picture, questions)
        logits = self.logits(states[:, 0], rows)
        if not penalized or self.penalty == 1:
            return logits
        known = range(logits.shape[-1]) if rows is None else rows
        told = torch.tensor([[token in of for token in known] for of in map(set, asked)])
        lower = torch.where(logits > 0, logits / self.penalty, logits * self.penalty)
        return torch.where(told.to(logits.device), lower, logits)


def chat_text(tokenizer: Any, image: int, question: str, count: int, free: str) -> str:
    """A question behind a picture of `count` tokens `image`, in a tokenizer's chat template.

    Raises ValueError where the user's part of it, `free`, holds one of the template's marks.
    """
    special = [str(token) for token in tokenizer.added_tokens_decoder.values() if token.special]
    marks = [mark for mark in special if mark in free]
    if marks:
        raise ValueError(f"{marks[0]} may not stand in a question to this model: {free!r}")
    content = [{"type": "image"}, {"type": "text", "text": question}]
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
    )
    mark = tokenizer.convert_ids_to_tokens(image)
    return text.replace(mark, mark * count)


def read_template(tokenizer: Any, folder: Path) -> Any:
    """The tokenizer with a chat template, its own or that of the folder's `chat_template.json`.

    Raises ValueError where there is none.
    """
    template = folder / "chat_template.json"
    if tokenizer.chat_template is None and template.is_file():
        tokenizer.chat_template = json.loads(template.read_text("utf-8"))["chat_template"]
    if tokenizer.chat_template is None:
        raise ValueError(f"{folder} has no chat template")
    return tokenizer


def _product(states: Tensor, weight: Tensor) -> Tensor:
    return F.linear(states.float(), weight.float())


def load_qwen(folder: Path, device: Any, pixels: int | None = None) -> QwenVl:
    """A Qwen-VL of a folder in transformers' layout, frozen; in bfloat16 on CUDA.

    Raises ValueError for damaged weights, another kind of model, or one that thinks before it
    answers, FileNotFoundError for missing files.
    """
    kind = model_type(folder)
    if kind not in TYPES:
        raise ValueError(f"{folder} is a {kind}; a picture's questions take {', '.join(TYPES)}")
    on_cuda = device is not None and torch.device(device).type == "cuda"
    dtype = torch.bfloat16 if on_cuda else torch.float32

    def make() -> tuple[Any, Any]:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        read_template(tokenizer, folder)
        return load_model(AutoModelForImageTextToText, folder, dtype=dtype), tokenizer

    model, tokenizer = shared(("qwen", folder, device), make)
    settings = folder / "generation_config.json"
    told = json.loads(settings.read_text("utf-8")) if settings.is_file() else {}
    qwen = QwenVl(
        model, tokenizer, read_qwen_view(folder, pixels), told.get("repetition_penalty") or 1.0
    )
    if qwen.chat("?").rstrip().endswith("<think>"):
        raise ValueError(
            f"{folder} thinks before it answers, so that its first token is no answer; take an "
            "Instruct checkpoint"
        )
    return qwen.to(device or "cpu")
