"""`mps`: Multi-dimensional Preference Score (arXiv 2405.14705): a CLIP that looks twice.

A CLIP ViT-H/14 sees the picture and the prompt; four layers then let the picture's tokens attend to
those words of the prompt that are near to a fixed list of things people judge by, and

    score = exp(logit_scale) cos(first token after these layers, prompt)

Which words are near is decided by similarity relative to the largest one. The authors take the
largest of the batch; here it is that of the prompt itself, which is theirs for a batch of one. The
weights are a conversion of the authors' file to safetensors; its layers are PaLM's, as lucidrains
wrote them.
"""

import re
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer
from transformers.initialization import no_init_weights

from align.rewards.catalogue import sources
from align.rewards.resize import check_size, crop_to, normalise
from align.rewards.weights import fill, find, locate_file, read_checkpoint
from align.rewards.words import token_ids

NAME = "mps"
CONDITION = (
    "light, color, clarity, tone, style, ambiance, artistry, shape, face, hair, hands, limbs, "
    "structure, instance, texture, quantity, attributes, position, number, location, word, things."
)
NEAR = 0.01  # of the largest similarity: words with less are not looked at
# The original names of a layer's parts, and ours.
_PARTS = {
    "ff.0": "ff_in",
    "ff.2": "ff_out",
    "ff_out.1": "ff_out",
    "fused_attn_ff_proj": "fused",
    "rotary_emb": "rotary",
}


class Rotary(nn.Module):
    """Angles of rotary positions (arXiv 2104.09864); their frequencies are part of the file."""

    def __init__(self, width: int):
        super().__init__()
        self.inv_freq: Tensor
        self.register_buffer("inv_freq", torch.ones(width // 2))

    def forward(self, states: Float[Tensor, "... n d"]) -> Float[Tensor, "... n d"]:
        positions = torch.arange(states.shape[-2]).to(self.inv_freq)
        angles = torch.outer(positions, self.inv_freq).repeat(1, 2)
        first, second = states.chunk(2, dim=-1)
        return states * angles.cos() + torch.cat((-second, first), dim=-1) * angles.sin()


class CrossAttention(nn.Module):
    """The picture's tokens attend to words by one shared key and value, a SwiGLU beside it."""

    def __init__(self, width: int, inner: int, head: int, hidden: int):
        super().__init__()
        self.head = head
        self.norm = nn.LayerNorm(width)
        self.to_q = nn.Linear(width, inner, bias=False)
        self.to_kv = nn.Linear(width, 2 * head, bias=False)
        self.to_out = nn.Linear(inner, width, bias=False)
        self.ff_in = nn.Linear(width, 2 * hidden, bias=False)
        self.ff_out = nn.Linear(hidden, width, bias=False)

    def forward(
        self,
        tokens: Float[Tensor, "b n d"],
        words: Float[Tensor, "b m d"],
        seen: Bool[Tensor, "b m"],
    ) -> Float[Tensor, "b n d"]:
        normed = self.norm(tokens)
        key, value = self.to_kv(words).unsqueeze(1).chunk(2, dim=-1)
        query = _heads(self.to_q(normed), self.head)
        found = _attend(query, key, value, seen[:, None, None])
        return tokens + self.to_out(found) + self.ff_out(_swiglu(self.ff_in(normed)))


class SelfAttention(nn.Module):
    """The picture's tokens attend to each other, one key and value for all heads, SwiGLU beside."""

    def __init__(self, width: int, inner: int, head: int, hidden: int):
        super().__init__()
        self.sizes = (inner, head, head, 2 * hidden)
        self.norm = nn.LayerNorm(width)
        self.rotary = Rotary(head)
        self.fused = nn.Linear(width, sum(self.sizes), bias=False)
        self.attn_out = nn.Linear(inner, width, bias=False)
        self.ff_out = nn.Linear(hidden, width, bias=False)

    def forward(self, tokens: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        query, key, value, wide = self.fused(self.norm(tokens)).split(self.sizes, dim=-1)
        query = self.rotary(_heads(query, self.sizes[1]))
        found = _attend(query, self.rotary(key.unsqueeze(1)), value.unsqueeze(1))
        return tokens + self.attn_out(found) + self.ff_out(_swiglu(wide))


class CrossModel(nn.Module):
    """Layers of cross and self attention in turn.

    Args:
        layers: how many pairs.
        width, inner, head, hidden: of the tokens, of all heads, of one head, of the SwiGLU.
    """

    def __init__(self, layers: int, width: int, inner: int, head: int, hidden: int):
        super().__init__()
        sizes = (width, inner, head, hidden)
        self.layers = nn.ModuleList(
            nn.ModuleDict({"cross": CrossAttention(*sizes), "self": SelfAttention(*sizes)})
            for _ in range(layers)
        )

    def forward(
        self,
        tokens: Float[Tensor, "b n d"],
        words: Float[Tensor, "b m d"],
        seen: Bool[Tensor, "b m"],
    ) -> Float[Tensor, "b n d"]:
        for pair in self.layers:
            both: Any = pair
            tokens = both["self"](both["cross"](tokens, words, seen))
        return tokens


class Mps(nn.Module):
    """exp(logit_scale) cos(picture that read the prompt, prompt); at most about 100 in size."""

    def __init__(self, model: CLIPModel, cross: CrossModel, tokenizer: CLIPTokenizer):
        super().__init__()
        self.model: Any = model  # transformers' configs are wide unions
        self.cross = cross
        self.tokenizer: Any = tokenizer

    def forward(self, images: Float[Tensor, "b 3 h w"], prompts: list[str]) -> Float[Tensor, " b"]:
        """Scores; raises ValueError for images smaller than one patch, warns of long prompts."""
        config = self.model.config.vision_config
        check_size(images, config.patch_size, NAME)
        view = crop_to(images.to(self.model.logit_scale), config.image_size)
        seen = self.model.vision_model(normalise(view)).last_hidden_state
        words, prompt = self.read(prompts)
        tokens = self.cross(self.model.visual_projection(seen), words, self.near(words))
        return self.model.logit_scale.exp() * F.cosine_similarity(tokens[:, 0], prompt, dim=-1)

    def read(self, prompts: list[str]) -> tuple[Float[Tensor, "b m d"], Float[Tensor, "b d"]]:
        """Features of every token, padding too (the layers look at it), and of the end token."""
        length = self.model.config.text_config.max_position_embeddings
        ids = token_ids(self.tokenizer, prompts, length, NAME, padding="max_length")["input_ids"]
        return self._features(ids)

    def near(self, words: Float[Tensor, "b m d"]) -> Bool[Tensor, "b m"]:
        """Which tokens are near to the condition, each prompt by itself; at least one always is."""
        length = self.model.config.text_config.max_position_embeddings
        ids = self.tokenizer(
            CONDITION, padding="max_length", truncation=True, max_length=length, return_tensors="pt"
        )["input_ids"]
        condition, _ = self._features(ids)
        alike = (words @ condition[0].T).amax(dim=-1)
        return alike / alike.amax(dim=-1, keepdim=True) > NEAR

    def _features(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        # What follows the end token cannot change it in a causal model: no mask, as the authors.
        out = self.model.text_model(ids.to(self.model.logit_scale.device))
        project = self.model.text_projection
        return project(out.last_hidden_state), project(out.pooler_output)


def _heads(states: Tensor, head: int) -> Tensor:
    return states.unflatten(-1, (-1, head)).transpose(1, 2)


def _attend(query: Tensor, key: Tensor, value: Tensor, seen: Tensor | None = None) -> Tensor:
    """[b, heads, n, d] attend to the one key and value [b, 1, m, d]; returns [b, n, heads d]."""
    logits = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5
    if seen is not None:
        logits = logits.masked_fill(~seen, float("-inf"))
    return (logits.softmax(dim=-1) @ value).transpose(1, 2).flatten(2)


def _swiglu(wide: Tensor) -> Tensor:
    value, gate = wide.chunk(2, dim=-1)
    return F.silu(gate) * value


def convert(tensors: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """The file's tensors by part (`clip`, `cross`) with our names; others keep theirs in `rest`."""
    parts: dict[str, dict[str, Tensor]] = {"clip": {}, "cross": {}, "rest": {}}
    for key, value in tensors.items():
        name = key.removeprefix("mps.")
        layer = re.fullmatch(r"cross_model\.layers\.(\d+)\.([01])\.fn\.(.+)\.(\w+)", name)
        if layer:
            kind = ("cross", "self")[int(layer[2])]
            part = _PARTS.get(layer[3], layer[3])
            parts["cross"][f"layers.{layer[1]}.{kind}.{part}.{layer[4]}"] = value
        elif not name.startswith("model."):
            parts["rest"][key] = value
        elif not name.endswith(".position_ids"):  # older versions of transformers stored them
            parts["clip"][name.removeprefix("model.")] = value
    return parts


def load_original(path: Path, words: Path) -> Mps:
    """The model of a converted file; `words` has CLIP's `config.json` and tokenizer.

    Raises ValueError for a file that is not one.
    """
    parts = convert(read_checkpoint(path))
    if parts["rest"]:
        raise ValueError(f"{path} is not of MPS: it holds {next(iter(parts['rest']))!r}")
    cross = parts["cross"]
    try:
        inner, width = cross["layers.0.cross.to_q.weight"].shape
        head = cross["layers.0.cross.to_kv.weight"].shape[0] // 2
        hidden = cross["layers.0.cross.ff_out.weight"].shape[1]
    except KeyError as error:
        raise ValueError(f"{path} is not of MPS: it lacks {error}") from error
    layers = 1 + max(int(key.split(".")[1]) for key in cross)
    with no_init_weights():  # a billion random numbers would be overwritten
        model = CLIPModel(CLIPConfig.from_pretrained(words))
    load = partial(fill, path=path)
    return Mps(
        load(model, parts["clip"]),
        load(CrossModel(layers, width, inner, head, hidden), cross),
        CLIPTokenizer.from_pretrained(words),
    )


def load(argument: str | None, device) -> Mps:
    """The reward `mps`, frozen; `argument`: the file, or a folder with `model.safetensors`.

    CLIP's `config.json`, `vocab.json` and `merges.txt` are looked for beside it first.

    Raises:
        FileNotFoundError: weights are not on this machine (says how to fetch them).
        ValueError: they are damaged or of something else, or an argument that is no path.
    """
    weights, words = sources(NAME)
    file, term, given = locate_file(NAME, weights, argument)
    return load_original(file, find(words, term, given)).to(device or "cpu")
