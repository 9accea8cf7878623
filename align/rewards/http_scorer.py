"""`http` and `https`: scores from a server of one's own.

    http://HOST:PORT/PATH            JSON, as Flow-Factory's reward server speaks it
    ...;format=pickle                pickles, as flow_grpo's servers speak them
    ...;field=NAME                   where in the answer the scores are: rewards (JSON), scores

The JSON is `{"prompt": [...], "image": [base64 of PNG files], "metadata": [...]}` and the answer
`{"rewards": [...]}`; in a pickle `images` are the files' bytes. `;batch:8` images go in one
request; `concurrency:16`, `timeout:120`, `retries:4` and `failure=stop` or `skip` are the policy of
`align.rewards.remote`.
"""

import base64
import json
import pickle
import pickletools
from io import BytesIO
from typing import Any

import httpx

from align.rewards.remote import Question, Remote, Server, number, read_json
from align.rewards.servers import policy_of, read_argument

WORDS, NUMBERS = ("format", "field", "failure"), ("batch", "concurrency", "timeout", "retries")
FORM = (
    "http://HOST:PORT/PATH, then of ;format=json or pickle, ;field=NAME, ;failure=stop or skip, "
    ";batch:8, ;concurrency:16, ;timeout:120, ;retries:4"
)
# What plain values are made of; all others import, call, build or allocate what is not sent.
_PLAIN = {
    *("PROTO", "FRAME", "STOP", "MARK", "POP", "POP_MARK", "DUP", "MEMOIZE", "PUT", "BINPUT"),
    *("LONG_BINPUT", "GET", "BINGET", "LONG_BINGET", "NONE", "NEWTRUE", "NEWFALSE", "INT"),
    *("BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT", "STRING"),
    *("BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "EMPTY_LIST", "LIST", "APPEND", "APPENDS"),
    *("EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "EMPTY_DICT", "DICT", "SETITEM"),
    *("SETITEMS",),
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module_name: str, global_name: str) -> Any:
        raise pickle.UnpicklingError(f"{module_name}.{global_name} is refused")


def read_pickle(body: bytes) -> Any:
    """The plain values of a pickle: lists, dictionaries, texts, numbers.

    Raises ValueError for one that asks for a class, and for what is no pickle.
    """
    try:
        for code, argument, _ in pickletools.genops(body):
            if code.name not in _PLAIN:
                raise ValueError(f"{code.name} is no plain value")
            if code.name == "LONG_BINPUT" and int(argument or 0) > len(body):
                raise ValueError("a place that cannot be")  # its table would be allocated
        return _Unpickler(BytesIO(body)).load()
    except Exception as error:  # a broken pickle raises whatever it likes
        raise ValueError(f"no pickle of plain values ({type(error).__name__})") from None


def http(argument: str | None, device: Any) -> Remote:
    """The reward `http`."""
    return load("http", argument)


def https(argument: str | None, device: Any) -> Remote:
    """The reward `https`."""
    return load("https", argument)


def load(scheme: str, argument: str | None) -> Remote:
    """A server's scores; it is asked first whether it is there.

    Raises ValueError for an argument that cannot be read, ScorerFailed where nobody answers.
    """
    term = f"{scheme}:{argument or ''}"
    rest, words, numbers = read_argument(term, argument, WORDS, NUMBERS, FORM)
    form = words.get("format", "json")
    if form not in ("json", "pickle"):
        raise ValueError(f"{term}: format is {form!r}; it must be json or pickle")
    batch = int(numbers.get("batch", 8))
    if batch < 1:
        raise ValueError(f"{term}: batch must be at least 1")
    field = words.get("field", "rewards" if form == "json" else "scores")
    address = f"{scheme}:{rest}"
    server = Server(term, address, policy_of(term, words, numbers))
    server.check(server.url.copy_with(path="/health", query=None))

    def send(client: httpx.Client, questions: list[Question]) -> list[float]:
        content, kind = (_json if form == "json" else _pickle)(questions)
        body = server.ask(client, "POST", server.url, content, kind)
        try:
            answer = read_json(body) if form == "json" else read_pickle(body)
        except ValueError:
            raise server.failed(f"answered what is no {form}") from None
        scores = answer.get(field) if isinstance(answer, dict) else None
        if not isinstance(scores, list | tuple):
            raise server.failed(f"answered no list {field!r}")
        found = [number(score) for score in scores]
        if None in found:
            raise server.failed("answered a score that is no finite number")
        return [score for score in found if score is not None]

    return Remote(server, send, ("http", address, form, field), batch)


def _json(questions: list[Question]) -> tuple[bytes, str]:
    request = {
        "prompt": [one.prompt for one in questions],
        "image": [base64.b64encode(one.png()).decode() for one in questions],
        "metadata": [one.metadata for one in questions],
    }
    return json.dumps(request, default=str).encode(), "application/json"


def _pickle(questions: list[Question]) -> tuple[bytes, str]:
    facts = [one.metadata for one in questions]
    request = {
        "images": [one.png() for one in questions],
        "prompts": [one.prompt for one in questions],
        "metadata": facts,
        "meta_datas": facts,
        "only_strict": False,
    }
    return pickle.dumps(request), "application/octet-stream"
