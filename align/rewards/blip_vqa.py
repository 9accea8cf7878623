"""`blip-vqa` and `da-score`: BLIP (arXiv 2201.12086) answers yes/no questions about a picture.

`blip-vqa`, as T2I-CompBench (arXiv 2307.06350) scores attributes: the prompt's noun phrases, "a red
cube", become questions, "a red cube?", at most eight;

    score = product over phrases of p(yes) / (p(yes) + p(no))

`da-score` (arXiv 2307.04749): the prompt is taken apart into assertions, each a yes/no question;

    score = mean over assertions of p(yes)

Probabilities are of the answer's first token, over the two words (`blip-vqa`) or the whole
vocabulary (`da-score`). The authors ask a language model for the assertions; rules
(`align.language.decompose`) or a file with questions stand in for it here.
"""

from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import BertTokenizer, BlipForQuestionAnswering

from align.language.assertions import with_article
from align.language.decompose import decompose
from align.rewards.catalogue import sources
from align.rewards.facts import Fact, in_rows
from align.rewards.resize import check_size, normalise, resize
from align.rewards.weights import find, load_model, local_path, shared
from align.rewards.words import token_ids

PHRASES = 8
_BLIP_ONLY = "a folder or Hub id OWNER/NAME of a BlipForQuestionAnswering"


class BlipAnswers(nn.Module):
    """Log-probabilities of the first token of answers."""

    def __init__(self, model: BlipForQuestionAnswering, tokenizer: BertTokenizer):
        super().__init__()
        self.model: Any = model  # transformers' configs are wide unions
        self.tokenizer = tokenizer
        self.yes, self.no = (
            tokenizer(word, add_special_tokens=False).input_ids[0] for word in ("yes", "no")
        )

    def forward(
        self,
        images: Float[Tensor, "b 3 h w"],
        questions: list[str],
        owner: Int[Tensor, " q"],
        name: str,
    ) -> Float[Tensor, "q v"]:
        """log p(token | question i, image `owner[i]`).

        Questions of one length go together, so that none is padded: transformers' cross attention
        looks at padding too, and scores would depend on the longest question.
        """
        model, config = self.model, self.model.config
        check_size(images, config.vision_config.patch_size, name)
        weight = model.vision_model.post_layernorm.weight
        side = config.vision_config.image_size
        pixels = normalise(resize(images.to(weight), (side, side)))
        seen = model.vision_model(pixels).last_hidden_state
        length = config.text_config.max_position_embeddings
        words = token_ids(self.tokenizer, questions, length, name)
        ids, counts = words["input_ids"].to(seen.device), words["attention_mask"].sum(1)
        rows: list[Tensor] = [seen] * len(questions)
        for count in counts.unique().tolist():
            of_length = (counts == count).nonzero().squeeze(-1)
            asked = model.text_encoder(
                ids[of_length, :count], encoder_hidden_states=seen[owner[of_length]]
            ).last_hidden_state
            start = ids.new_full((len(of_length), 1), config.text_config.bos_token_id)
            logits = model.text_decoder(start, encoder_hidden_states=asked).logits[:, -1]
            for row, answer in zip(of_length.tolist(), logits.log_softmax(-1), strict=True):
                rows[row] = answer
        return torch.stack(rows)


class BlipVqa(nn.Module):
    """Product over a prompt's phrases of p(yes) against p(no), in [0, 1]."""

    def __init__(self, answers: BlipAnswers):
        super().__init__()
        self.answers = answers

    def forward(self, images: Float[Tensor, "b 3 h w"], prompts: list[str]) -> Float[Tensor, " b"]:
        questions, sure = self.sure(images, prompts)
        return torch.stack([part.prod() for part in sure.split([len(q) for q in questions])])

    def explain(self, images: Float[Tensor, "b 3 h w"], prompts: list[str]) -> list[list[Fact]]:
        """p(yes) against p(no) for each phrase of the prompts."""
        return in_rows(*self.sure(images, prompts))

    def sure(
        self, images: Float[Tensor, "b 3 h w"], prompts: list[str]
    ) -> tuple[list[list[str]], Float[Tensor, " q"]]:
        """The questions of each prompt, and p(yes) against p(no) of all of them in order."""
        questions = [phrases(prompt) for prompt in prompts]
        flat = [question for per_image in questions for question in per_image]
        logs = self.answers(images, flat, _owner(questions), "blip-vqa")
        return questions, (logs[:, self.answers.yes] - logs[:, self.answers.no]).sigmoid()


class DaScore(nn.Module):
    """Mean p(yes) over the assertions of a prompt, in [0, 1]."""

    def __init__(self, answers: BlipAnswers, questions: Path | None = None):
        super().__init__()
        self.answers = answers
        self.questions = questions

    def forward(self, images: Float[Tensor, "b 3 h w"], prompts: list[str]) -> Float[Tensor, " b"]:
        asked, yes = self.sure(images, prompts)
        return torch.stack([part.mean() for part in yes.split([len(q) for q in asked])])

    def explain(self, images: Float[Tensor, "b 3 h w"], prompts: list[str]) -> list[list[Fact]]:
        """p(yes) of each assertion of the prompts."""
        return in_rows(*self.sure(images, prompts))

    def sure(
        self, images: Float[Tensor, "b 3 h w"], prompts: list[str]
    ) -> tuple[list[list[str]], Float[Tensor, " q"]]:
        """The questions of each prompt, and p(yes) of all of them in order."""
        asked = [[a.question for a in decompose(p, cache=self.questions)] for p in prompts]
        flat = [question for per_image in asked for question in per_image]
        logs = self.answers(images, flat, _owner(asked), "da-score")
        return asked, logs[:, self.answers.yes].exp()


def phrases(prompt: str) -> list[str]:
    """The noun phrases of a prompt as questions, at most eight; the prompt itself if it has none.

    A noun that comes with attributes is not asked for without them.
    """
    found = [a.subject for a in decompose(prompt) if a.kind != "relation" and a.subject]
    described = {thing.noun for thing in found if thing.attributes}
    named = [thing for thing in found if thing.attributes or thing.noun not in described]
    questions = dict.fromkeys(f"{with_article(str(thing))}?" for thing in named)
    return list(questions)[:PHRASES] or [f"{prompt.rstrip('.?! ')}?"]


def _owner(questions: list[list[str]]) -> Tensor:
    counts = torch.tensor([len(per_image) for per_image in questions])
    return torch.arange(len(questions)).repeat_interleave(counts)


def load(argument: str | None, device) -> BlipVqa:
    """The reward `blip-vqa`, frozen; `argument`: a Hub id or folder of a BLIP for questions.

    Raises:
        FileNotFoundError: its weights are not on this machine (says how to fetch them).
        ValueError: they are damaged, or an argument that is neither.
    """
    return BlipVqa(_load_answers("blip-vqa", argument, device)).to(device or "cpu")


def load_da_score(argument: str | None, device) -> DaScore:
    """The reward `da-score`, frozen.

    `argument`: as for `blip-vqa`, or a JSON file `{prompt: [question, ...]}` whose questions are
    asked where it knows the prompt. Raises as `load`.
    """
    path = local_path(argument)
    questions = path if path is not None and path.suffix == ".json" else None
    answers = _load_answers("da-score", None if questions else argument, device)
    return DaScore(answers, questions).to(device or "cpu")


def _load_answers(name: str, argument: str | None, device) -> BlipAnswers:
    given = local_path(argument)
    if argument is not None and given is None and argument.count("/") != 1:
        raise ValueError(f"{name}:{argument} is not {_BLIP_ONLY}")
    term = name if argument is None else f"{name}:{argument}"
    folder = find(sources(name, argument)[0], term, given)

    def make() -> BlipAnswers:
        model = load_model(BlipForQuestionAnswering, folder)
        return BlipAnswers(model, BertTokenizer.from_pretrained(folder))

    return shared(("blip-vqa", folder, device), make)
