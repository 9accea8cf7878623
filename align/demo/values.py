"""Values that a browser sent: checked, whatever the page allows.

Each function returns the value or raises TypeError or ValueError in one sentence.
"""

import random
from collections.abc import Collection
from typing import Any

from align.config.checks import one_of

MAX_SEED = 2**31 - 1
RANDOM_SEEDS = 1_000_000  # few digits are easier to read and to note down
PROMPT_LENGTH = 1000  # characters
MIN, MAX = -1e9, 1e9  # of a number that has no bounds of its own


def text(name: str, value: Any, needed: bool = False) -> str:
    """Text without spaces around it, of at most PROMPT_LENGTH characters."""
    if value is not None and not isinstance(value, str):
        raise TypeError(f"the {name} is of type {type(value).__name__}; it must be text")
    value = (value or "").strip()
    if needed and not value:
        raise ValueError(f"the {name} is empty; say what the picture should show")
    if len(value) > PROMPT_LENGTH:
        raise ValueError(
            f"the {name} has {len(value)} characters; at most {PROMPT_LENGTH} are allowed"
        )
    return value


def number(name: str, value: Any, low: float, high: float) -> float:
    """A number from low to high."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} is {short(value)}; it must be a number from {low} to {high}")
    if not low <= value <= high:  # NaN too
        raise ValueError(f"{name} is {short(value)}; it must be from {low} to {high}")
    return float(value)


def whole(name: str, value: Any, low: int, high: int) -> int:
    """A whole number from low to high."""
    checked = number(name, value, low, high)
    if checked != int(checked):
        raise ValueError(f"{name} is {short(value)}; it must be a whole number")
    return int(checked)


def one(name: str, value: Any, allowed: Collection[str]) -> str:
    """One of the names allowed."""
    if not isinstance(value, str) or value not in allowed:
        raise ValueError(f"{name} is {short(value)}; {one_of(value, allowed)}")
    return value


def some(name: str, value: Any, allowed: Collection[str]) -> list[str]:
    """One or several of the names allowed, each once."""
    if not isinstance(value, list) or not value:
        raise ValueError(f"{name} is {short(value)}; choose at least one of {', '.join(allowed)}")
    return list(dict.fromkeys(one(name, part, allowed) for part in value))


def flag(name: str, value: Any) -> bool:
    """True or false."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} is {short(value)}; it must be true or false")
    return value


def seed(value: Any, randomize: Any) -> int:
    """The seed given, or a random one."""
    if flag("randomize_seed", randomize):
        return random.SystemRandom().randrange(RANDOM_SEEDS)
    return whole("seed", value, 0, MAX_SEED)


def short(value: Any) -> str:
    """A value in a message."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:79]}…"
