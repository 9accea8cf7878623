"""`ocr`: whether the text that the prompt quotes stands in the picture, as a model reads it.

With t the text between the first two quotation marks of the prompt and r what was read, both
without white space and in lower case, as flow_grpo and Flow-Factory score it:

    1 - d / |t|,   d = 0 if r contains t, else the Levenshtein distance, at most |t|

Surplus and repeated text costs nothing there; `;exact` gives 1 where r = t and else 0. The model
reads greedily: TrOCR and its like (one line of text), or any model of transformers that answers
questions about a picture. There is no gradient.
"""

import re
import unicodedata
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    VisionEncoderDecoderModel,
)

from align.rewards.catalogue import sources
from align.rewards.weights import find, load_model, local_path, model_type, shared
from align.runs.files import brief

NAME = "ocr"
# verl-omni's.
QUESTION = (
    "Please output only the text content from the image without any additional descriptions or "
    "formatting."
)
LONGEST = 128  # tokens that are read
_QUOTED = re.compile('["“”„‟]([^"“”„‟]*)["“”„‟]')


class Ocr(nn.Module):
    """How near the text that `read` finds in each picture comes to what its prompt quotes."""

    differentiable = False

    def __init__(self, reader: nn.Module, exact: bool):
        super().__init__()
        self.reader = reader
        self.exact = exact

    @torch.no_grad()
    def forward(self, images: Float[Tensor, "b 3 h w"], prompts: list[str]) -> Float[Tensor, " b"]:
        """Scores in [0, 1]. Raises ValueError for a prompt that quotes nothing."""
        wanted = [quoted(prompt) for prompt in prompts]
        found = self.reader(images)
        score = exact_match if self.exact else likeness
        scores = [score(read, text) for read, text in zip(found, wanted, strict=True)]
        return torch.tensor(scores, dtype=images.dtype, device=images.device)


class Reader(nn.Module):
    """The texts of pictures, read by a model of transformers."""

    def __init__(self, model: Any, processor: Any, text: str | None):
        super().__init__()
        self.model = model
        self.processor = processor
        self.text = text

    @torch.no_grad()
    def forward(self, images: Float[Tensor, "b 3 h w"]) -> list[str]:
        """What stands in each picture; the pictures are rounded to bytes, as from a file."""
        texts = []
        for image in (255 * images.float().clamp(0, 1)).round().byte().cpu():
            picture = Image.fromarray(image.permute(1, 2, 0).numpy())
            said = {} if self.text is None else {"text": self.text}
            inputs = self.processor(images=picture, return_tensors="pt", **said)
            inputs = inputs.to(self.model.device)
            ids = self.model.generate(
                **inputs, do_sample=False, num_beams=1, max_new_tokens=LONGEST
            )[0]
            if self.text is not None:  # a decoder's own output begins with the question
                ids = ids[inputs["input_ids"].shape[1] :]
            texts.append(self.processor.tokenizer.decode(ids, skip_special_tokens=True))
        return texts


def quoted(prompt: str) -> str:
    """The text between the first two quotation marks, straight or curly.

    Raises ValueError for a prompt without any, or with nothing between them.
    """
    found = _QUOTED.search(prompt)
    if found is None or not plain(found[1]):
        raise ValueError(
            f'ocr reads what a prompt quotes, such as a sign that says "OPEN"; {prompt!r} quotes '
            "no text"
        )
    return found[1]


def plain(text: str) -> str:
    """A text as it is compared: composed characters, no white space, lower case."""
    return re.sub(r"\s+", "", unicodedata.normalize("NFC", text)).lower()


def likeness(read: str, wanted: str) -> float:
    """1 where the text wanted stands in the one read, less by its share of wrong characters."""
    r, t = plain(read), plain(wanted)
    return 1.0 if t in r else 1 - min(levenshtein(r, t), len(t)) / len(t)


def exact_match(read: str, wanted: str) -> float:
    """1 where the two texts are the same, else 0."""
    return float(plain(read) == plain(wanted))


def levenshtein(a: str, b: str) -> int:
    """The least number of characters to insert, delete or replace that makes `a` `b`."""
    row = list(range(len(b) + 1))
    for i, one in enumerate(a, 1):
        last, row = row, [i]
        for j, other in enumerate(b, 1):
            row.append(min(last[j] + 1, row[-1] + 1, last[j - 1] + (one != other)))
    return row[-1]


def load(argument: str | None, device: Any) -> Ocr:
    """The reward `ocr`, frozen; `argument`: a Hub id or folder of the model, and `;exact`.

    Raises:
        FileNotFoundError: its weights are not on this machine (says how to fetch them).
        ValueError: they are damaged, an argument that is none of these, or a processor that needs
            a package which is not there.
    """
    name, *rest = (argument or "").split(";")
    if rest not in ([], ["exact"]):
        raise ValueError(f"{NAME}:{argument} cannot be read; the form is {NAME}:MODEL;exact")
    given = local_path(name or None)
    if name and given is None and name.count("/") != 1:
        raise ValueError(f"{NAME}:{name} is neither a Hub id OWNER/NAME nor a folder")
    term = f"{NAME}:{name}" if name else NAME
    folder = given or find(sources(NAME, name or None)[0], term)
    reader = shared((NAME, folder, device), lambda: load_reader(folder))
    return Ocr(reader, bool(rest)).to(device or "cpu")


def load_reader(folder: Path) -> Reader:
    """The model of a folder, and its processor. Raises ValueError where either cannot be had."""
    try:
        processor: Any = AutoProcessor.from_pretrained(folder, local_files_only=True)
    except (ImportError, OSError, ValueError) as error:
        raise ValueError(f"the processor of {folder} cannot be had ({brief(error)})") from error
    if model_type(folder) == "vision-encoder-decoder":
        return Reader(load_model(VisionEncoderDecoderModel, folder), processor, None)
    model = load_model(AutoModelForImageTextToText, folder)
    return Reader(model, processor, _question(processor))


def _question(processor: Any) -> str:
    """The question in the model's own chat template, if it has one."""
    if not getattr(processor, "chat_template", None):
        return f"{getattr(processor, 'image_token', '')}{QUESTION}"
    content = [{"type": "image"}, {"type": "text", "text": QUESTION}]
    return processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True
    )
