"""`vlm`: what a Qwen-VL on this machine answers to a question about the picture.

With L the logits of the answer's first token, in float32, `score=` is one of

    p          softmax(L) of the first token of "Yes"                     (VQAScore, 2404.01291)
    sum        softmax(L) summed over Yes, yes, and both behind a blank   (GenEval 2, 2512.16853)
    share      P_yes / (P_yes + P_no), over every token that reads so
    odds       log P_yes - log P_no of the same: logit(share); the default, as it never saturates
    scale:1-5  sum of k softmax over the digits' logits, the expected answer

and `answer=TEXT` is exp of the mean log-likelihood of the text's tokens. `ask=@FILE` is the
question, with `{prompt}` where the prompt goes; `pixels:262144` limits the picture's size, and so
time and memory; `penalty=own` applies the repetition penalty of the model's generation settings to
the question's tokens, as scores of `generate` have it.
"""

import re

import torch
from jaxtyping import Float
from torch import Tensor, nn

from align.rewards.arguments import Given, read_argument, read_question
from align.rewards.catalogue import sources
from align.rewards.qwen import QwenVl, load_qwen
from align.rewards.slopes import by_picture
from align.rewards.weights import find, local_path

NAME = "vlm"
QUESTION = 'Does this figure show "{prompt}"? Please answer yes or no.'
RATING = 'How well does this image show "{prompt}"? Answer with a number from {low} to {high} only.'
YES = ("Yes", "yes", " yes", " Yes")
SCORES = ("odds", "p", "sum", "share", "scale")


class Vlm(nn.Module):
    """One of the scores above.

    Attributes:
        score: its name; `scale` has the digits `low` to `high`, an `answer` stands for itself.
    """

    def __init__(
        self,
        qwen: QwenVl,
        question: str = QUESTION,
        score: str = "odds",
        *,
        answer: str | None = None,
        scale: tuple[int, int] = (1, 5),
        penalized: bool = False,
    ):
        super().__init__()
        self.qwen = qwen
        self.question = question
        self.score = score
        self.penalized = penalized
        self.answer = None if answer is None else qwen.words(answer)
        self.digits = list(range(scale[0], scale[1] + 1))
        self.spelled = [qwen.words(word)[0] for word in (YES if score == "sum" else YES[:1])]
        self.yes, self.no = (qwen.reading(word) for word in ("yes", "no"))

    def forward(self, images: Float[Tensor, "b 3 h w"], prompts: list[str]) -> Float[Tensor, " b"]:
        asked = [self.question.replace("{prompt}", prompt) for prompt in prompts]
        return by_picture(lambda picture, i: self.answers(picture, [asked[i]]), images)

    def answers(
        self, picture: Float[Tensor, "1 3 h w"], questions: list[str]
    ) -> Float[Tensor, " q"]:
        """The score of each question about one picture."""
        if self.answer is not None:
            states, _ = self.qwen.states(picture, questions, self.answer)
            logs = self.qwen.logits(states).log_softmax(-1)
            told = torch.tensor(self.answer, device=logs.device).expand(len(logs), -1)
            return logs.gather(-1, told[..., None])[..., 0].mean(-1).exp()
        if self.score == "scale":
            rows = [self.qwen.words(str(k))[0] for k in self.digits]
            logits = self.qwen.ask(picture, questions, rows, penalized=self.penalized)
            return logits.softmax(-1) @ torch.tensor(self.digits).to(logits)
        if self.score in ("share", "odds"):
            rows = [*self.yes, *self.no]
            logits = self.qwen.ask(picture, questions, rows, penalized=self.penalized)
            yes, no = logits.split([len(self.yes), len(self.no)], -1)
            odds = yes.logsumexp(-1) - no.logsumexp(-1)
            return odds if self.score == "odds" else odds.sigmoid()
        logits = self.qwen.ask(picture, questions, penalized=self.penalized)
        return logits.softmax(-1)[:, self.spelled].sum(-1)


def load(argument: str | None, device) -> Vlm:
    """The reward `vlm`, frozen; see the module's docstring for its argument.

    Raises:
        FileNotFoundError: its weights or its question's file are not on this machine.
        ValueError: an argument that cannot be read, another kind of model, damaged weights.
    """
    given = read_argument(NAME, argument)
    qwen = find_qwen(NAME, given, device)
    score, scale = _score(given)
    default = QUESTION
    if score == "scale":
        default = RATING.replace("{low}", str(scale[0])).replace("{high}", str(scale[1]))
    question = read_question(given, "ask", default, ("{prompt}",))
    answer = given.words.get("answer")
    if answer is not None and {"score", "penalty"} & set(given.words):
        raise ValueError(f"{given.term}: answer= is a score of its own, without score= or penalty=")
    penalized = "penalty" in given.words and given.choice("penalty", ("own",)) == "own"
    return Vlm(qwen, question, score, answer=answer, scale=scale, penalized=penalized)


def find_qwen(name: str, given: Given, device) -> QwenVl:
    """The Qwen-VL that an argument names, by a folder or a Hub id, or the reward's own."""
    path = local_path(given.model)
    if given.model is not None and path is None and given.model.count("/") != 1:
        raise ValueError(f"{given.term} names no Hub id OWNER/NAME and no folder of a Qwen-VL")
    argument = given.term.partition(":")[2] or None
    fetched = name if given.model is None else f"{name}:{given.model}"
    folder = path or find(sources(name, argument)[0], fetched)
    return load_qwen(folder, device, given.whole("pixels", 1))


def _score(given: Given) -> tuple[str, tuple[int, int]]:
    """The score's name and the ends of its scale."""
    scale = re.fullmatch(r"scale:(\d)-(\d)", given.words.get("score", ""))
    if scale is not None and int(scale[1]) < int(scale[2]):
        return "scale", (int(scale[1]), int(scale[2]))
    word = given.words.get("score", "odds")
    if word not in SCORES[:-1]:
        raise ValueError(
            f"{given.term}: score is {word!r}; allowed are odds, p, sum, share and scale:LOW-HIGH "
            "of two digits"
        )
    return word, (1, 5)
