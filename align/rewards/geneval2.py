"""`geneval2`: how surely a Qwen-VL sees what a prompt of GenEval 2 asks for (arXiv 2512.16853).

Its Soft-TIFA: each prompt of its file comes with questions and answers (`vqa_list`). With p the
summed probability of an answer's first tokens, in its spellings,

    score = exp(mean log p)         (`mean=arithmetic`: the mean of p; `score=log`: the logarithm)

A number is spelled as a word and a digit. Qwen splits a blank and a digit, so that the bare blank
counts among its first tokens: kept, as in the original; `spellings=clean` leaves it out. A token
that two spellings begin with counts twice, and p may exceed 1. The benchmark's figure is 100 times
the mean over prompts, one picture each. Its file is CC BY-NC 4.0 and not part of this package.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from align.rewards.arguments import read_argument
from align.rewards.qwen import QwenVl
from align.rewards.slopes import by_picture
from align.rewards.vlm import YES, find_qwen

NAME = "geneval2"
QUESTION = "{question} Answer in one word."
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
MEANS, SCORES, SPELLINGS = ("geometric", "arithmetic"), ("p", "log"), ("own", "clean")


class GenEval2(nn.Module):
    """See the module's docstring."""

    wants_metadata = True

    def __init__(
        self, qwen: QwenVl, mean: str = "geometric", score: str = "p", *, clean: bool = False
    ):
        super().__init__()
        self.qwen = qwen
        self.mean = mean
        self.score = score
        self.clean = clean

    def forward(
        self,
        images: Float[Tensor, "b 3 h w"],
        prompts: list[str],
        metadata: Sequence[Mapping[str, Any]] | None = None,
    ) -> Float[Tensor, " b"]:
        """Scores. Raises ValueError for a prompt without questions."""
        rows = metadata if metadata is not None else [{} for _ in prompts]
        asked = [vqa_list(prompt, row) for prompt, row in zip(prompts, rows, strict=True)]
        return by_picture(lambda one, i: self.mean_of(self.logs(one, asked[i]))[None], images)

    def logs(
        self, picture: Float[Tensor, "1 3 h w"], asked: Sequence[tuple[str, str]]
    ) -> Float[Tensor, " q"]:
        """log p of the answer to each question, the picture encoded once for all."""
        questions = [QUESTION.replace("{question}", question) for question, _ in asked]
        logs = self.qwen.ask(picture, questions).log_softmax(-1)
        rows = [self.first_tokens(answer) for _, answer in asked]
        return torch.stack([log[row].logsumexp(0) for log, row in zip(logs, rows, strict=True)])

    def first_tokens(self, answer: str) -> list[int]:
        """The first token of each spelling of an answer; one may come twice."""
        words = [self.qwen.words(text) for text in spellings(answer)]
        bare = self.qwen.words(" ")[0]
        return [ids[0] for ids in words if not (self.clean and len(ids) > 1 and ids[0] == bare)]

    def mean_of(self, logs: Float[Tensor, " q"]) -> Float[Tensor, ""]:
        """A prompt's score from log p of its questions."""
        if self.mean == "arithmetic":
            value = logs.exp().mean()
            return value.log() if self.score == "log" else value
        return logs.mean() if self.score == "log" else logs.mean().exp()


def spellings(answer: str) -> tuple[str, ...]:
    """How an answer may begin: `yes`, or a number as a word and a digit, or any other word."""
    word = answer.strip().lower()
    if word == "yes":
        return YES
    texts = (word, word.capitalize(), f" {word}", f" {word.capitalize()}")
    if word not in NUMBERS:
        return texts
    digit = str(NUMBERS.index(word))
    return (*texts, digit, f" {digit}")


def vqa_list(prompt: str, row: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The questions and answers of a prompt. Raises ValueError where it has none."""
    asked = row.get("vqa_list")
    if not asked or not all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in asked):
        raise ValueError(
            f"geneval2 needs questions and answers of {prompt!r}, the column `vqa_list` of "
            "GenEval 2's file geneval2_data.jsonl; give that file as prompts"
        )
    return [(str(question), str(answer)) for question, answer in asked]


def soft_tifa(
    logs: Sequence[Float[Tensor, " _"]], rows: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """The benchmark's table from log p of each prompt's questions and its rows of the file:
    `geometric` and `arithmetic` (100 x means over prompts), the pooled mean of p `by_skill`, the
    mean of the geometric score `by_atoms`."""
    geometric = [log.double().mean().exp().item() for log in logs]
    arithmetic = [log.double().exp().mean().item() for log in logs]
    skills: dict[str, list[float]] = {}
    atoms: dict[int, list[float]] = {}
    for log, one, row in zip(logs, geometric, rows, strict=True):
        for p, skill in zip(log.double().exp().tolist(), row["skills"], strict=True):
            skills.setdefault(skill, []).append(p)
        atoms.setdefault(row["atom_count"], []).append(one)
    return {
        "geometric": 100 * _mean(geometric),
        "arithmetic": 100 * _mean(arithmetic),
        "by_skill": {name: 100 * _mean(values) for name, values in sorted(skills.items())},
        "by_atoms": {count: 100 * _mean(values) for count, values in sorted(atoms.items())},
    }


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def load(argument: str | None, device) -> GenEval2:
    """The reward and judge `geneval2`, frozen; `argument`: `model=` a Qwen-VL (Qwen3-VL-8B of the
    original by default), `mean=`, `score=`, `spellings=`, `pixels:NUMBER`.

    Raises FileNotFoundError for missing weights, ValueError for an argument that cannot be read.
    """
    given = read_argument(NAME, argument)
    mean = given.choice("mean", MEANS)
    score, clean = given.choice("score", SCORES), given.choice("spellings", SPELLINGS) == "clean"
    return GenEval2(find_qwen(NAME, given, device), mean, score, clean=clean)
