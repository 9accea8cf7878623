"""`hpsv3`: HPSv3 (arXiv 2508.03789), what people prefer, by a Qwen2-VL of 7B with a head.

    score = the first of two numbers of head(h), h the last state at the token <|Reward|>

the other being the logarithm of its spread, which only training uses; published means of current
models are 13 to 16. The picture comes before an instruction with the prompt in it (the authors',
MIT, its notice is in the file), resized to about 200704 pixels. The authors' model gives picture
tokens the positions 0, 1, 2, … as if they were words; ports that leave positions to transformers'
Qwen2-VL compute another score.
"""

import json
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import AutoTokenizer, Qwen2VLConfig
from transformers.initialization import no_init_weights
from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VLModel

from align.rewards.catalogue import sources
from align.rewards.qwen import QwenView, chat_text, read_template
from align.rewards.slopes import by_picture
from align.rewards.weights import fill, find, locate_file, read_checkpoint, shared

NAME = "hpsv3"
TOKEN = "<|Reward|>"
VIEW = QwenView(least=256 * 28 * 28, most=256 * 28 * 28)
# Places of the head's linear layers in the original, whose dropout and activations count too.
LAYERS = ("0", "3", "5")


class HpsV3(nn.Module):
    """See the module's docstring."""

    def __init__(self, model: Any, head: nn.Sequential, tokenizer: Any, view: QwenView = VIEW):
        super().__init__()
        self.model = model
        self.head: Any = head
        self.tokenizer = tokenizer
        self.view = view
        self.image: int = model.config.image_token_id
        path = Path(__file__).with_name("hpsv3.json")
        self.instruction = "\n".join(json.loads(path.read_text(encoding="utf-8"))["lines"])

    def forward(self, images: Float[Tensor, "b 3 h w"], prompts: list[str]) -> Float[Tensor, " b"]:
        """Scores. Raises ValueError for a prompt with marks of the chat template in it."""
        return by_picture(lambda one, i: self.score(one, prompts[i]), images)

    def score(self, picture: Float[Tensor, "1 3 h w"], prompt: str) -> Float[Tensor, "1"]:
        """The score of one picture."""
        weight = self.head[0].weight
        patches, grid = self.view(picture.to(weight))
        ids = self.tokens(prompt, len(patches) // self.view.merge**2).to(weight.device)
        return self.rate(ids, patches, grid)[:, 0]

    def tokens(self, prompt: str, count: int) -> Int[Tensor, "1 n"]:
        """The tokens of the question; the last word of the vocabulary is the head's."""
        if TOKEN in prompt:
            raise ValueError(f"{TOKEN} may not stand in a prompt of hpsv3: {prompt!r}")
        question = self.instruction.replace("{text_prompt}", prompt)
        text = chat_text(self.tokenizer, self.image, question, count, prompt)
        last = self.model.get_input_embeddings().num_embeddings - 1
        before, after = (
            self.tokenizer(part, add_special_tokens=False).input_ids for part in text.split(TOKEN)
        )
        return torch.tensor([[*before, last, *after]])

    def rate(
        self, ids: Int[Tensor, "1 n"], patches: Float[Tensor, "p f"], grid: Int[Tensor, "1 3"]
    ) -> Float[Tensor, "1 2"]:
        """Both numbers of the head, at the last word of the vocabulary."""
        positions = torch.arange(ids.shape[1], device=ids.device).expand(3, 1, -1)
        states = self.model(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            position_ids=positions,
            pixel_values=patches,
            image_grid_thw=grid,
            mm_token_type_ids=(ids == self.image).int(),
            use_cache=False,
        ).last_hidden_state
        last = self.model.get_input_embeddings().num_embeddings - 1
        return self.head(states[ids == last].to(self.head[0].weight.dtype))


def convert(tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The original's tensors, of the model and of the head."""
    model = {
        ("language_" + key if key.startswith("model.") else key): value
        for key, value in tensors.items()
        if not key.startswith(("lm_head.", "rm_head."))
    }
    head = {
        f"{2 * LAYERS.index(place)}.{name}": value
        for key, value in tensors.items()
        if key.startswith("rm_head.")
        for _, place, name in [key.split(".")]
    }
    return model, head


def load_hpsv3(path: Path, folder: Path, dtype: torch.dtype) -> HpsV3:
    """The model of the authors' file and of a folder with Qwen2-VL's config and tokenizer.

    Raises ValueError for a file that is damaged or something else.
    """
    tensors = read_checkpoint(path)
    wanted = [f"rm_head.{place}.weight" for place in LAYERS]
    embedded = tensors.get("model.embed_tokens.weight")
    if embedded is None or not all(key in tensors and tensors[key].ndim == 2 for key in wanted):
        raise ValueError(f"{path} is not HPSv3: it needs model.embed_tokens and {wanted[0]}")
    config: Any = Qwen2VLConfig.from_pretrained(folder, local_files_only=True)
    # the head's token was added, and the rows that were to spare are gone
    config.text_config.vocab_size = len(embedded)
    layers: list[nn.Module] = []
    for key in wanted:
        wide, narrow = tensors[key].shape
        layers += [nn.Linear(narrow, wide), nn.ReLU()]
    model, head = convert(tensors)
    with no_init_weights():  # billions of random numbers would be overwritten
        made = Qwen2VLModel(config)
    return HpsV3(
        fill(made, model, path, dtype, assign=True),
        fill(nn.Sequential(*layers[:-1]), head, path),
        read_template(AutoTokenizer.from_pretrained(folder, local_files_only=True), folder),
    )


def load(argument: str | None, device) -> HpsV3:
    """The reward `hpsv3`, frozen; `argument`: its file, or a folder with it (and Qwen2-VL's small
    files).

    Raises:
        FileNotFoundError: weights are not on this machine (says how to fetch them).
        ValueError: they are damaged, or an argument that is no path.
    """
    weights, words = sources(NAME)
    file, term, given = locate_file(NAME, weights, argument)
    folder = find(words, term, given)
    on_cuda = device is not None and torch.device(device).type == "cuda"
    dtype = torch.bfloat16 if on_cuda else torch.float32
    model = shared((NAME, file, device), lambda: load_hpsv3(file, folder, dtype))
    return model.to(device or "cpu")
