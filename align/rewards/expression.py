"""Reward expressions: `NAME[:ARGUMENT][=WEIGHT]`, commas, `min`, `product`, `z`, `rank`.

    hps=1,aesthetic=0.1            weighted sum
    min(scenes-clip,scenes-vqa=2)  the smallest of the weighted terms, image by image
    product(a,b)                   their product (sensible for scores >= 0)
    z(a=2,b)                       2 (a - mean_a) / std_a + (b - mean_b) / std_b
    rank(a)                        the rank by a among the images of the prompt, from 0 to 1
    rewards.py:sharpness=0.5       a user's own function, in any place a name may stand

A weight is the last `=NUMBER` of a term, so arguments may hold `=` (`detector:remove=person`).
Where `KEY=NUMBER` ends an argument and KEY is one of the reward's settings (`detector:model=7`), it
could be either and is refused: write `KEY=NUMBER=1`, or `KEY:NUMBER` for a setting that is a
number.
"""

import math
import re
from dataclasses import dataclass
from pathlib import Path

from align.rewards.catalogue import JUDGES, REWARDS, SERVERS

COMBINATORS = ("min", "product", "z", "rank")
_NAME = re.compile(r"[A-Za-z][\w.-]*")
_FUNCTION = re.compile(r"(?P<path>.+\.py):(?P<function>[A-Za-z_]\w*)")


@dataclass(frozen=True)
class Term:
    """One reward: a catalogue name with its argument, or `path.py` with a function in it."""

    name: str
    argument: str | None = None

    @property
    def key(self) -> str:
        """The term as written, without weight: its name in `reward.terms()`."""
        return self.name if self.argument is None else f"{self.name}:{self.argument}"


@dataclass(frozen=True)
class Combination:
    """`kind` is sum, min, product, z or rank; `items` are (part, weight)."""

    kind: str
    items: tuple[tuple["Term | Combination", float], ...]

    def kind_within(self, *kinds: str) -> bool:
        """Whether this combination, or one within it, is of one of these kinds."""
        parts = [part for part, _ in self.items if isinstance(part, Combination)]
        return self.kind in kinds or any(part.kind_within(*kinds) for part in parts)


def leaves(node: Term | Combination) -> list[Term]:
    """The terms of an expression in order, each once."""
    if isinstance(node, Term):
        return [node]
    return list(dict.fromkeys(leaf for part, _ in node.items for leaf in leaves(part)))


def scored(node: Term | Combination) -> list[Term | Combination]:
    """What of an expression is scored by itself, each once: terms, and `rank(...)` as a whole."""
    if isinstance(node, Term) or node.kind == "rank":
        return [node]
    return list(dict.fromkeys(one for part, _ in node.items for one in scored(part)))


def parse_expression(text: str) -> Combination:
    """Read a reward expression into a tree whose root is a sum.

    Raises:
        ValueError: what is wrong, at which character, and what is expected there.
        TypeError: `text` is not a str.
    """
    if not isinstance(text, str):
        raise TypeError(f"a reward expression is a str, got {type(text).__name__}")
    items, end = _read_items(text, 0)
    if end < len(text):
        raise _error(text, end, "no opening parenthesis matches this one")
    return Combination("sum", tuple(items))


def format_expression(node: Term | Combination) -> str:
    """The text of a tree; `parse_expression` reads it back to the same tree."""
    if isinstance(node, Term):
        return node.key
    parts = [format_expression(part) + ("" if w == 1 else f"={w!r}") for part, w in node.items]
    return ",".join(parts) if node.kind == "sum" else f"{node.kind}({','.join(parts)})"


def expand(node: Combination, sets: dict[str, str]) -> Combination:
    """The tree with the names of sets (`carinox`) replaced by what they stand for.

    A set's terms join the sum or `z(...)` that it stands in, each with its weight times the set's.

    Raises:
        ValueError: a set with an argument, or within min or product, which take single terms.
    """
    items: list[tuple[Term | Combination, float]] = []
    for part, weight in node.items:
        if isinstance(part, Combination):
            items.append((expand(part, sets), weight))
        elif part.name not in sets:
            items.append((part, weight))
        elif part.argument is not None:
            raise ValueError(f"{part.key}: the set {part.name} takes no argument")
        elif node.kind not in ("sum", "z"):
            raise ValueError(f"{node.kind}({part.name}): a set stands in a sum or in z(...)")
        else:
            inner = parse_expression(sets[part.name]).items
            items += [(term, weight * own) for term, own in inner]
    return Combination(node.kind, tuple(items))


def _error(text: str, at: int, problem: str) -> ValueError:
    where = f"at character {at + 1} ({text[at:]!r})" if at < len(text) else "at the end"
    return ValueError(f"malformed reward expression {text!r}: {problem}, {where}")


def _read_items(text: str, at: int) -> tuple[list[tuple[Term | Combination, float]], int]:
    """Read items up to the end or an unmatched `)`; return them and the position reached."""
    items = []
    while True:
        item, at = _read_item(text, at)
        items.append(item)
        if at == len(text) or text[at] == ")":
            return items, at
        at += 1  # the comma


def _read_item(text: str, at: int) -> tuple[tuple[Term | Combination, float], int]:
    """Read one item with its weight; the position returned is at `,`, `)` or the end."""
    at += len(text[at:]) - len(text[at:].lstrip())
    call = re.match(r"(\w+)\s*\(", text[at:])
    if call:
        return _read_call(text, at, call)
    end = min((i for i in (text.find(c, at) for c in ",()") if i >= 0), default=len(text))
    if end < len(text) and text[end] == "(":
        raise _error(text, end, f"only {', '.join(COMBINATORS)} take parentheses")
    body = text[at:end].rstrip()
    if not body:
        raise _error(text, at, "expected a reward's name")
    return _read_term(text, at, body), end


def _read_call(text: str, at: int, call: re.Match) -> tuple[tuple[Combination, float], int]:
    kind = call.group(1)
    if kind not in COMBINATORS:
        raise _error(text, at, f"only {', '.join(COMBINATORS)} take parentheses, not {kind!r}")
    inner, close = _read_items(text, at + call.end())
    if close == len(text):
        raise _error(text, len(text), f"the parenthesis of {kind}( is never closed")
    if kind == "z" and not all(isinstance(part, Term) for part, _ in inner):
        raise _error(text, at, "z(...) takes rewards only, not min, product, z or rank")
    if kind == "rank" and (len(inner) > 1 or not isinstance(inner[0][0], Term) or inner[0][1] != 1):
        raise _error(text, at, "rank(...) takes one reward, without a weight")
    end = min((i for i in (text.find(c, close + 1) for c in ",)") if i >= 0), default=len(text))
    rest = text[close + 1 : end].strip()
    if rest and not rest.startswith("="):
        raise _error(text, close + 1, "expected =WEIGHT, a comma or the end after )")
    weight = _weight(text, close + 1, rest[1:]) if rest else 1.0
    return (Combination(kind, tuple(inner)), weight), end


def _read_term(text: str, at: int, body: str) -> tuple[Term, float]:
    """`NAME[:ARGUMENT][=WEIGHT]` or `PATH.py:FUNCTION[=WEIGHT]`."""
    head, equals, tail = body.rpartition("=")
    is_weight = bool(equals) and (":" not in head or _is_number(tail)) and not _is_path(body)
    weight = _weight(text, at + len(head) + 1, tail) if is_weight else 1.0
    head = head.rstrip() if is_weight else body
    key = _setting(head) if is_weight else None
    if key is not None:
        value = f"{key}:{tail.strip()}" if key in _settings(head)[1] else f"{body}=1"
        raise _error(
            text,
            at + len(head),
            f"{tail} may be a weight or the value of {key!r}; for the value write {value}",
        )
    function = _FUNCTION.fullmatch(head)
    if function:
        return Term(function["path"], function["function"]), weight
    name, colon, argument = head.partition(":")
    if not _NAME.fullmatch(name):
        raise _error(text, at, f"expected a reward's name (letters, digits, - _ .), got {name!r}")
    if name.endswith(".py"):
        raise _error(text, at, f"{name} needs a function: {name}:FUNCTION")
    if colon and not argument.strip():
        raise _error(text, at + len(name) + 1, f"expected an argument after {name}:")
    return Term(name, argument if colon else None), weight


def _settings(head: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The keys of words and of numbers that a term's reward takes."""
    reward = (REWARDS | JUDGES).get(head.partition(":")[0].strip())
    return (reward.words, reward.numbers) if reward else ((), ())


def _setting(head: str) -> str | None:
    """The key in which a term without its last `=NUMBER` ends, if it is a setting of its reward."""
    name, _, argument = head.partition(":")
    query = re.search(r"\?(?:[^;]*&)?([^;=&]*)$", argument)
    if name.strip() in SERVERS and query:  # of the address
        return query[1]
    key = argument.split(";")[-1].strip()
    words, numbers = _settings(head)
    return key if key in (*words, *numbers) else None


def _is_path(body: str) -> bool:
    """Whether a term ends in a path that exists, so that the `=` in it belongs to a name."""
    function, argument = _FUNCTION.fullmatch(body), body.partition(":")[2].strip()
    path = function["path"] if function else argument
    return "=" in path and Path(path).expanduser().exists()


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _weight(text: str, at: int, number: str) -> float:
    if not _is_number(number) or not math.isfinite(float(number)):
        raise _error(text, at, f"a weight is a finite number, got {number!r}")
    return float(number)
