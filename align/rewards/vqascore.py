"""`vqascore`: how sure a model is that the answer to "does this picture show it?" is yes.

VQAScore (Lin et al. 2024, arXiv 2404.01291), by default with its own CLIP-FlanT5-XL:

    score = exp(mean over the tokens of "Yes" of log p(token))

CLIP-FlanT5 has two such tokens, "Yes" and the end of the answer. Any other model of transformers
that takes a picture and a question (LLaVA, PaliGemma, BLIP-2, …) works too, if all it does to a
picture is to resize, crop and normalise it, and Qwen2-VL, Qwen2.5-VL and Qwen3-VL, which cut it
into patches (`align.rewards.qwen`); then the first token of the answer counts. A Qwen is asked as
its authors' `t2v-metrics` asks it.
"""

from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import AutoModelForImageTextToText, AutoProcessor

from align.rewards.arguments import read_argument
from align.rewards.catalogue import sources
from align.rewards.clip_t5 import QUESTION, load_clip_t5
from align.rewards.processors import PlainView, read_view
from align.rewards.qwen import load_qwen
from align.rewards.vlm import Vlm
from align.rewards.weights import find, load_model, local_path, model_type, shared

NAME = "vqascore"
# By kind of model, from t2v-metrics 3.0, and its repository for Qwen3-VL.
QWEN_QUESTIONS = {
    "qwen2_vl": 'Does this image show "{prompt}"?',
    "qwen2_5_vl": 'Does this image show "{prompt}"?',
    "qwen3_vl": 'Does this figure show "{prompt}"? Please answer Yes or No.',
}
SIZES = {"clip-flant5-xl": None, "clip-flant5-xxl": "clip-flant5-xxl"}


class VlmAnswer(nn.Module):
    """p(first token is "Yes") of a vision-language model of transformers, in (0, 1)."""

    def __init__(self, model: Any, processor: Any, view: PlainView):
        super().__init__()
        self.model = model
        self.processor = processor
        self.view = view
        self.yes: int = processor.tokenizer("Yes", add_special_tokens=False).input_ids[0]

    def forward(self, images: Float[Tensor, "b 3 h w"], prompts: list[str]) -> Float[Tensor, " b"]:
        """Scores, one prompt at a time, so that no question is padded."""
        weight = next(self.model.parameters())
        pixels = self.view(images.to(weight.device)).to(weight)
        scores = []
        for row, prompt in zip(pixels, prompts, strict=True):
            inputs = self.processor(
                images=self.view.blank, text=self.question(prompt), return_tensors="pt"
            )
            inputs = {k: v.to(row.device) for k, v in inputs.items() if k != "pixel_values"}
            logits = self.model(**inputs, pixel_values=row[None]).logits[0, -1]
            # In halves, which a card is given, probabilities would be coarse.
            logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
            scores.append(logits.softmax(-1)[self.yes])
        return torch.stack(scores)

    def question(self, prompt: str) -> str:
        """The question in the model's own chat template, if it has one."""
        text = QUESTION.format(prompt)
        if not getattr(self.processor, "chat_template", None):
            return f"{getattr(self.processor, 'image_token', '')}{text}"
        content = [{"type": "image"}, {"type": "text", "text": text}]
        return self.processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True
        )


def load(argument: str | None, device) -> nn.Module:
    """The reward `vqascore`, frozen.

    `argument`: `clip-flant5-xl` (default), `clip-flant5-xxl`, a Hub id or folder of either, or of
    another model of transformers that answers questions about a picture; `pixels:NUMBER` limits
    the size of a Qwen's.

    Raises:
        FileNotFoundError: weights are not on this machine (says how to fetch them).
        ValueError: they are damaged, an argument that is none of these, or a model that does more
            to a picture than resize, crop and normalise it.
    """
    asked = read_argument(NAME, argument)
    given = local_path(asked.model)
    if given is None and asked.model not in (None, *SIZES) and asked.model.count("/") != 1:
        known = ", ".join(SIZES)
        raise ValueError(f"{NAME}:{argument} is neither {known} nor a Hub id or folder")
    term = NAME if asked.model is None else f"{NAME}:{asked.model}"
    wanted = sources(NAME, SIZES.get(asked.model or "", asked.model))
    folder = given or find(wanted[0], term)
    kind = model_type(folder)
    if kind in QWEN_QUESTIONS:
        qwen = load_qwen(folder, device, asked.whole("pixels", 1))
        return Vlm(qwen, QWEN_QUESTIONS[kind], "p")
    if asked.numbers:
        raise ValueError(f"{asked.term}: only a Qwen-VL takes pixels:NUMBER")
    if kind == "clip_t5":
        words, tower = (wanted if len(wanted) == 3 else sources(NAME))[1:]
        model = shared((NAME, folder, device), lambda: load_clip_t5(folder, words, tower, term))
    else:
        model = shared((NAME, folder, device), lambda: _load_vlm(folder))
    if device is not None and torch.device(device).type == "cuda":
        model = model.bfloat16()  # as its authors run it; float32 of the XL would take 12 GB
    return model.to(device or "cpu")


def _load_vlm(folder: Path) -> VlmAnswer:
    processor = AutoProcessor.from_pretrained(folder, local_files_only=True)
    view = read_view(processor.image_processor, str(folder))
    model = load_model(AutoModelForImageTextToText, folder)
    return VlmAnswer(model, processor, view)
