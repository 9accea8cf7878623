"""`chat`: scores from a model that answers questions about pictures, behind an OpenAI-like server.

    chat:http://HOST:8000/v1;model=NAME;score=share          P(yes) / (P(yes) + P(no))
    chat:...;ask=@question.txt;score=p                       P("Yes") as the first token
    chat:...;ask=@question.txt;score=regex:@pattern.txt      the number that a pattern finds
    chat:...;ask=@question.txt;score=json:overall            a number of the JSON in the answer

`{prompt}` in the question stands for the prompt. Probabilities are of the first token's twenty
likeliest; texts may have `tokens:512`. `ALIGN_API_KEY` of the environment is the key.
"""

import base64
import json
import math
import re
from collections.abc import Callable
from typing import Any

import httpx

from align.rewards.remote import Question, Remote, Server, number, read_json
from align.rewards.score_cache import ScorerFailed
from align.rewards.servers import file_text, own_key, policy_of, read_argument

ASK = 'Does this image show "{prompt}"? Answer the question with Yes or No.'
WORDS = ("model", "ask", "score", "failure")
NUMBERS = ("tokens", "seed", "concurrency", "timeout", "retries")
FORM = (
    "chat:http://HOST:PORT/v1;model=NAME, then of ;ask=@FILE, ;score=share, p, regex:@FILE or "
    "json:KEY, ;failure=stop or skip, ;tokens:512, ;seed:0, ;concurrency:16, ;timeout:120, "
    ";retries:4"
)
LISTED = 20  # tokens whose probabilities are asked for
READ = 20_000  # characters of an answer

Reader = Callable[[Any], float | None]


def load(argument: str | None, device: Any) -> Remote:
    """A served model's scores; the server is asked first whether it is there.

    Raises ValueError for an argument that cannot be read or a key that would go out unencrypted,
    FileNotFoundError for a file that is not there, ScorerFailed where nobody answers.
    """
    term = f"chat:{argument or ''}"
    address, words, numbers = read_argument(term, argument, WORDS, NUMBERS, FORM)
    if "model" not in words:
        raise ValueError(f"{term} names no model; the form is {FORM}")
    question = file_text(term, words["ask"]) if "ask" in words else ASK
    rule, read = _reader(term, words.get("score", "share"))
    server = Server(term, address, policy_of(term, words, numbers), own_key())
    base = server.url.copy_with(path=server.url.path.rstrip("/"))
    server.check(base.copy_with(path=f"{base.path}/models"))
    place = base.copy_with(path=f"{base.path}/chat/completions")
    first_token = rule in ("share", "p")
    settings: dict[str, Any] = {
        "model": words["model"],
        "temperature": 0,
        "top_p": 1,
        "repetition_penalty": 1,
        "seed": int(numbers.get("seed", 0)),
        "max_tokens": 1 if first_token else int(numbers.get("tokens", 512)),
    }
    if first_token:
        settings |= {"logprobs": True, "top_logprobs": LISTED}

    def send(client: httpx.Client, questions: list[Question]) -> list[float]:
        (one,) = questions
        content = [
            {"type": "image_url", "image_url": {"url": _data(one.png())}},
            {"type": "text", "text": question.replace("{prompt}", one.prompt)},
        ]
        request = settings | {"messages": [{"role": "user", "content": content}]}
        for again in range(2):  # a text that cannot be read is asked for once more
            body = request | {"seed": settings["seed"] + again}
            score = read(_choice(server, client, place, body))
            if score is not None:
                return [score]
            if first_token:
                raise server.failed("lists neither of the tokens asked for")
        raise server.failed(f"answered twice what {rule.partition(':')[0]} cannot read")

    return Remote(server, send, ("chat", str(base), question, rule, settings))


def _choice(server: Server, client: httpx.Client, place: httpx.URL, request: dict) -> Any:
    """The first choice of an answer."""
    content = json.dumps(request).encode()
    body = server.ask(client, "POST", place, content, "application/json")
    try:
        choice = read_json(body)["choices"][0]
    except (ValueError, KeyError, IndexError, TypeError):
        raise _no_chat(server) from None
    return choice


def _no_chat(server: Server) -> ScorerFailed:
    return server.failed("answered what is no chat completion")


def _reader(term: str, rule: str) -> tuple[str, Reader]:
    """The rule as it goes into the cache's key, and what reads a choice by it."""
    kind, _, rest = rule.partition(":")
    if rule == "share":
        return rule, read_share
    if rule == "p":
        return rule, read_p
    if kind == "json" and rest:
        return rule, lambda choice: read_key(_text(choice), rest)
    if kind == "regex" and rest:
        pattern = file_text(term, rest)
        try:
            found = re.compile(pattern)
        except re.error as error:
            raise ValueError(f"{term}: {rest} holds no regular expression ({error})") from None
        if found.groups != 1:
            raise ValueError(f"{term}: the pattern in {rest} must have one group, the number")
        return f"regex:{pattern}", lambda choice: read_pattern(_text(choice), found)
    raise ValueError(f"{term}: score is {rule!r}; it must be share, p, regex:@FILE or json:KEY")


def read_share(choice: Any) -> float | None:
    """P(yes) / (P(yes) + P(no)), each summed over every listed token that reads so."""
    sums = {"yes": 0.0, "no": 0.0}
    for token, probability in _first_tokens(choice):
        word = token.strip().lower()
        if word in sums:
            sums[word] += probability
    total = sums["yes"] + sums["no"]
    return sums["yes"] / total if total > 0 else None


def read_p(choice: Any) -> float | None:
    """The probability of the token "Yes"; None where it is not listed."""
    found = [probability for token, probability in _first_tokens(choice) if token == "Yes"]
    return found[0] if found else None


def _first_tokens(choice: Any) -> list[tuple[str, float]]:
    """The tokens listed for the first place with their probabilities; of a list that is none or
    whose probabilities cannot be, nothing."""
    try:
        listed = choice["logprobs"]["content"][0]["top_logprobs"]
        found = [(one["token"], number(one["logprob"])) for one in listed]
    except (KeyError, IndexError, TypeError):
        return []
    if not all(isinstance(t, str) and p is not None and p <= 1e-3 for t, p in found):
        return []
    pairs = [(token, math.exp(min(p, 0.0))) for token, p in found if p is not None]
    return pairs if sum(p for _, p in pairs) <= 1 + 1e-2 else []


def read_pattern(text: str, pattern: re.Pattern) -> float | None:
    """The number that a pattern's group finds in a text."""
    found = pattern.search(text)
    return None if found is None else _number_in(found[1])


def read_key(text: str, key: str) -> float | None:
    """A number of the first JSON object in a text that has it."""
    decoder = json.JSONDecoder()
    at = text.find("{")
    for _ in range(100):
        if at < 0:
            return None
        try:
            value = decoder.raw_decode(text, at)[0].get(key)
        except (ValueError, RecursionError):
            value = None
        if value is not None:
            return _number_in(value) if isinstance(value, str) else number(value)
        at = text.find("{", at + 1)
    return None


def _number_in(text: str | None) -> float | None:
    try:
        return number(float(text or ""))
    except ValueError:
        return None


def _text(choice: Any) -> str:
    """What the model said, as far as it is read; empty where it said nothing."""
    try:
        text = choice["message"]["content"]
    except (KeyError, TypeError):
        return ""
    return text[:READ] if isinstance(text, str) else ""


def _data(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"
