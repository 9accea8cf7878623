"""`questions`: a benchmark's yes/no questions about a picture, answered by a Qwen-VL.

Prompts of DSG-1k (arXiv 2310.18235), DPG-Bench (2403.05135) and TIFA (2303.11897) come with
questions, some of which make sense only after a yes to others, their parents. With s the share of
yes among yes and no,

    questions       mean of [s > 0.5], where a no makes its children no, and theirs: a judge
    questions:soft  mean of s times the product of its parents' s, with a gradient (ours)

The benchmarks' own judges are other models: say "DPG questions, judged by ...". A question whose
answer is no counts 1 - s; of one with choices it is asked whether the answer is the right one.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from align.rewards.arguments import read_argument, read_question
from align.rewards.slopes import by_picture, to_bytes
from align.rewards.vlm import Vlm, find_qwen

NAME = "questions"
QUESTION = "{question} Please answer Yes or No."
CHOICE = '{question} Is the answer "{answer}"?'


class Questions(nn.Module):
    """See the module's docstring."""

    wants_metadata = True

    def __init__(self, vlm: Vlm, question: str = QUESTION, *, soft: bool = False):
        super().__init__()
        self.vlm = vlm
        self.question = question
        self.soft = soft
        self.differentiable = soft

    def forward(
        self,
        images: Float[Tensor, "b 3 h w"],
        prompts: list[str],
        metadata: Sequence[Mapping[str, Any]] | None = None,
    ) -> Float[Tensor, " b"]:
        """Scores in [0, 1]. Raises ValueError for a prompt without questions."""
        rows = metadata if metadata is not None else [{} for _ in prompts]
        asked = [questions_of(prompt, row) for prompt, row in zip(prompts, rows, strict=True)]
        images = images if self.soft else to_bytes(images)
        return by_picture(lambda one, i: self.score(one, asked[i])[None], images)

    def score(
        self, picture: Float[Tensor, "1 3 h w"], asked: Sequence[Mapping[str, Any]]
    ) -> Float[Tensor, ""]:
        """One picture's score."""
        return combine(self.shares(picture, asked), asked, soft=self.soft)

    def shares(
        self, picture: Float[Tensor, "1 3 h w"], asked: Sequence[Mapping[str, Any]]
    ) -> Float[Tensor, " q"]:
        """How sure each question's answer is the right one, in [0, 1]."""
        answers = [str(one.get("answer") or "yes").strip().lower() for one in asked]
        texts = []
        for one, answer in zip(asked, answers, strict=True):
            text = one["question"]
            if answer not in ("yes", "no"):
                text = CHOICE.replace("{question}", text).replace("{answer}", answer)
            texts.append(self.question.replace("{question}", text))
        yes = self.vlm.answers(picture, texts)
        no = torch.tensor([answer == "no" for answer in answers], device=yes.device)
        return torch.where(no, 1 - yes, yes)


def combine(
    shares: Float[Tensor, " q"], asked: Sequence[Mapping[str, Any]], *, soft: bool
) -> Float[Tensor, ""]:
    """A picture's score from its questions' shares; parents that are not asked do not count."""
    places = {str(one["id"]): place for place, one in enumerate(asked)}
    if soft:
        rows = [
            [places[str(parent)] for parent in one.get("parents") or () if str(parent) in places]
            for one in asked
        ]
        values = [
            share * shares[row].prod() if row else share
            for share, row in zip(shares, rows, strict=True)
        ]
        return torch.stack(values).mean()
    held = [share > 0.5 for share in shares.tolist()]
    for place, one in enumerate(asked):
        parents = [places.get(str(parent)) for parent in one.get("parents") or ()]
        held[place] &= all(held[parent] for parent in parents if parent is not None)
    return shares.new_tensor(sum(held) / len(held))


def questions_of(prompt: str, row: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The questions of a prompt. Raises ValueError where it has none."""
    asked = row.get("questions")
    if not asked or not all(isinstance(one, Mapping) and one.get("question") for one in asked):
        raise ValueError(
            f"questions needs questions about {prompt!r}; give a file of DSG-1k, DPG-Bench or TIFA "
            "as prompts, or one with a column `questions`, a list of objects with id, question and "
            "parents"
        )
    return [{"id": str(number), **one} for number, one in enumerate(asked, 1)]


def load(argument: str | None, device) -> Questions:
    """The judge `questions` or the reward `questions:soft`, frozen; `argument`: `model=` a Qwen-VL,
    `ask=@FILE` with `{question}` in it, `pixels:NUMBER`.

    Raises FileNotFoundError for missing weights, ValueError for an argument that cannot be read.
    """
    given = read_argument(NAME, argument, ("soft",))
    question = read_question(given, "ask", QUESTION, ("{question}",))
    vlm = Vlm(find_qwen(NAME, given, device), score="share")
    return Questions(vlm, question, soft=given.mode == "soft")
