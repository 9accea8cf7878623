"""CLIP-FlanT5 (arXiv 2404.01291) on transformers' own classes.

A CLIP ViT-L/14 at 336 pixels sees the picture; the patch states before its last layer go through
two linear layers with a GELU between them and stand in the question where `<image>` is; a Flan-T5
reads it and answers.
"""

import json
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import (
    AutoTokenizer,
    CLIPVisionConfig,
    CLIPVisionModel,
    T5Config,
    T5ForConditionalGeneration,
)
from transformers.initialization import no_init_weights

from align.rewards.catalogue import Source
from align.rewards.resize import check_size, normalise, resize, square_pad
from align.rewards.weights import fill, find, load_model, read_checkpoint

SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives "
    "helpful, detailed, and polite answers to the user's questions. USER: "
)
QUESTION = 'Does this figure show "{}"? Please answer yes or no.'
WINDOW = 2048  # tokens
TOWER = "vision_tower.vision_tower.vision_model."


class ClipT5(nn.Module):
    """The probability that a question about a picture is answered with yes."""

    def __init__(
        self,
        t5: T5ForConditionalGeneration,
        vision: CLIPVisionModel,
        projector: nn.Sequential,
        tokenizer: Any,
    ):
        super().__init__()
        self.t5: Any = t5  # transformers' configs are wide unions
        self.vision: Any = vision
        self.projector = projector
        self.tokenizer = tokenizer

    def see(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b n d"]:
        """Pictures as T5's input states, one for each patch.

        Raises ValueError for images smaller than a patch.
        """
        config = self.vision.config
        check_size(images, config.patch_size, "vqascore")
        weight = next(self.projector.parameters())
        side = config.image_size
        pixels = normalise(resize(square_pad(images.to(weight.device)), (side, side)))
        states = self.vision(pixels.to(weight), output_hidden_states=True).hidden_states[-2]
        return self.projector(states[:, 1:])

    def forward(self, images: Float[Tensor, "b 3 h w"], prompts: list[str]) -> Float[Tensor, " b"]:
        """exp of the mean log-likelihood of "Yes" and the end token, in (0, 1)."""
        seen = self.see(images)
        answer = torch.tensor(self.tokenizer("Yes").input_ids, device=seen.device)
        embed = self.t5.get_input_embeddings()
        scores = []
        for picture, prompt in zip(seen, prompts, strict=True):
            before, after = (self.ids(text).to(seen.device) for text in _around(prompt))
            states = torch.cat([embed(before), picture, embed(after)])[None]
            # The original pads with the unknown token and masks it, real ones too.
            known = torch.cat([before, before.new_ones(len(picture)), after])
            mask = (known != self.tokenizer.unk_token_id).long()
            mask[len(before) : len(before) + len(picture)] = 1
            logits = self.t5(
                inputs_embeds=states, attention_mask=mask[None], labels=answer[None]
            ).logits[0]
            # In halves, which a card is given, probabilities would be coarse.
            logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
            # The original cuts the embeddings, and so the answers, to the tokenizer's words.
            logs = logits[:, : len(self.tokenizer)].log_softmax(-1)
            scores.append(logs.gather(-1, answer[:, None]).mean().exp())
        return torch.stack(scores)

    def ids(self, text: str) -> Tensor:
        """Token ids; an end token follows each part of a question, as in the original."""
        return torch.tensor(self.tokenizer(text).input_ids)


def _around(prompt: str) -> tuple[str, str]:
    """The question's text before and after the picture."""
    return SYSTEM, f"\n{QUESTION.format(prompt)} ASSISTANT: "


def convert(tensors: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """The original's tensors by part: `t5`, `vision` (empty if it has none), `projector`.

    `embed_tokens` repeats T5's `shared`, which stands for its encoder's and decoder's too.
    """
    parts: dict[str, dict[str, Tensor]] = {"t5": {}, "vision": {}, "projector": {}}
    for key, value in tensors.items():
        if key.startswith(TOWER):
            name = key.removeprefix(TOWER)
            if name != "embeddings.position_ids":
                parts["vision"][name] = value
        elif key.startswith("mm_projector."):
            parts["projector"][key.removeprefix("mm_projector.")] = value
        elif key != "embed_tokens.weight":
            parts["t5"][key] = value
    shared = parts["t5"].get("shared.weight")
    if shared is not None:
        for side in ("encoder", "decoder"):
            parts["t5"].setdefault(f"{side}.embed_tokens.weight", shared)
    return parts


def read_shards(folder: Path) -> dict[str, Tensor]:
    """All tensors of a folder with one file of weights, or with shards and an index.

    Raises FileNotFoundError where a shard is missing, ValueError where one is damaged.
    """
    for index in (*folder.glob("model.safetensors.index.json"), *folder.glob("*.bin.index.json")):
        shards = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        absent = [name for name in shards if not (folder / name).is_file()]
        if absent:
            raise FileNotFoundError(f"{folder} lacks {absent[0]}, which its index names")
        return {k: v for name in shards for k, v in read_checkpoint(folder / name).items()}
    for name in ("model.safetensors", "pytorch_model.bin"):
        if (folder / name).is_file():
            return read_checkpoint(folder / name)
    raise FileNotFoundError(f"{folder} holds no weights")


def load_clip_t5(folder: Path, words: Source, tower: Source, term: str) -> ClipT5:
    """CLIP-FlanT5 of a folder; tokenizer and CLIP are looked for there, then where installed.

    Raises FileNotFoundError or ValueError for weights that are missing or damaged.
    """
    settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    settings.pop("model_type", None)
    settings.pop("architectures", None)
    parts = convert(read_shards(folder))
    if not parts["projector"]:
        raise ValueError(f"{folder} is no CLIP-FlanT5: it has no mm_projector")
    settings["vocab_size"] = len(parts["t5"]["shared.weight"])
    projector = nn.Sequential(*(_linear(parts["projector"], layer) for layer in (0, 2)))
    projector.insert(1, nn.GELU())
    beside = folder / "vision_tower"
    vision_folder = beside if beside.is_dir() else find(tower, term, folder.parent)
    if parts["vision"]:
        config = CLIPVisionConfig.from_pretrained(vision_folder)
        vision = fill(CLIPVisionModel(config), parts["vision"], folder)
    else:
        vision = load_model(CLIPVisionModel, vision_folder)
    with no_init_weights():  # billions of random numbers would be overwritten
        t5 = T5ForConditionalGeneration(T5Config(**settings))
    # transformers ties the last layer to the embeddings, Flan-T5 has one of its own.
    t5.lm_head.weight = nn.Parameter(torch.empty_like(t5.lm_head.weight))
    return ClipT5(
        fill(t5, parts["t5"], folder),
        vision,
        fill(projector, parts["projector"], folder),
        AutoTokenizer.from_pretrained(find(words, term, folder)),
    )


def _linear(tensors: dict[str, Tensor], layer: int) -> nn.Linear:
    wide, narrow = tensors[f"{layer}.weight"].shape
    return nn.Linear(narrow, wide)
