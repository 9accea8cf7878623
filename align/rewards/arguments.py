"""What follows a reward's colon: `MODEL;key=word;key:NUMBER`, in any order, joined by `;`.

Which keys a reward knows is in its line of `align.rewards.catalogue`. Numbers take a colon, since
the last `=NUMBER` of a term is its weight. Texts that hold a comma are files, `ask=@question.txt`.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from align.config.checks import one_of
from align.rewards.catalogue import JUDGES, REWARDS
from align.runs.files import read_text


@dataclass(frozen=True)
class Given:
    """An argument that was read."""

    term: str
    """As written, with the reward's name."""
    model: str | None
    """A folder or Hub id: the part without a key, or `model=`."""
    mode: str | None
    words: Mapping[str, str]
    numbers: Mapping[str, float]

    def choice(self, key: str, known: tuple[str, ...]) -> str:
        """One of the known words, the first where none was given. Raises ValueError for others."""
        word = self.words.get(key, known[0])
        if word not in known:
            raise ValueError(f"{self.term}: {key} is {word!r}; {one_of(word, known)}")
        return word

    def whole(self, key: str, least: int) -> int | None:
        """A whole number, or None. Raises ValueError for another or a smaller one."""
        number = self.numbers.get(key)
        if number is None:
            return None
        if number != int(number) or number < least:
            raise ValueError(
                f"{self.term}: {key} is {number:g}; it is a whole number of at least {least}"
            )
        return int(number)


def read_argument(name: str, argument: str | None, modes: tuple[str, ...] = ()) -> Given:
    """The parts of the argument of the reward or judge `name`.

    Raises ValueError for a part that cannot be read, an unknown key or one that comes twice.
    """
    reward = (REWARDS | JUDGES)[name]
    term = name if argument is None else f"{name}:{argument}"
    found: dict[str, str | float] = {}
    for part in argument.split(";") if argument else ():
        key, sign, value = _split(part.strip(), (*reward.words, *reward.numbers))
        key = key or ("mode" if value in modes else "model")
        if not value or (not sign and "=" in value and not Path(value).expanduser().exists()):
            fault = f"cannot be read at {part!r}"
        elif key in found:
            fault = f"gives {key} twice"
        elif key in reward.numbers and sign == "=":
            fault = f"cannot be read at {part!r}: numbers take a colon, {key}:{value}"
        elif key in reward.words and sign == ":":
            fault = f"cannot be read at {part!r}: words take an equals sign, {key}={value}"
        elif key in reward.numbers and not _is_finite(value):
            fault = f"cannot be read at {part!r}: {value!r} is no number"
        else:
            found[key] = float(value) if key in reward.numbers else value
            continue
        allowed = [*modes, *(f"{key}=…" for key in reward.words)]
        allowed += [f"{key}:NUMBER" for key in reward.numbers]
        allowed += ["FOLDER_OR_HUB_ID"] if reward.any_repository else []
        raise ValueError(f"{term} {fault}; allowed are {', '.join(allowed)}, joined by ;")
    words = {key: value for key, value in found.items() if isinstance(value, str)}
    numbers = {key: value for key, value in found.items() if isinstance(value, float)}
    return Given(term, words.pop("model", None), words.pop("mode", None), words, numbers)


def _split(text: str, keys: tuple[str, ...]) -> tuple[str, str, str]:
    """(key, = or :, value) by the first of both signs; no key where it is unknown."""
    at = min((i for sign in "=:" if (i := text.find(sign)) > 0), default=0)
    key = text[:at].strip()
    return (key, text[at], text[at + 1 :].strip()) if at and key in keys else ("", "", text)


def _is_finite(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def read_question(given: Given, key: str, default: str, holes: tuple[str, ...]) -> str:
    """The text of a file given as `key=@FILE`, with at least one of the `holes` in it.

    Raises FileNotFoundError where there is no such file, ValueError for a word that names none or
    a file without a hole.
    """
    word = given.words.get(key)
    if word is None:
        return default
    if not word.startswith("@"):
        raise ValueError(f"{given.term}: {key} is {word!r}; write the text to a file, {key}=@FILE")
    path = Path(word[1:]).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"{given.term}: there is no file {path}")
    text = read_text(path, "question file").strip()
    if not any(hole in text for hole in holes):
        raise ValueError(f"{path} does not say where the prompt goes; write {holes[0]} there")
    return text
