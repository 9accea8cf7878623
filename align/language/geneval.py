"""GenEval's prompts (arXiv 2310.11513; MIT, the notice is in their file) and their six templates.

What a prompt asks for is `tag`, `include` and for counting `exclude`, lists of clauses: a class,
how many, a colour, a position against the objects of an earlier clause.
"""

import functools
import json
import re
from pathlib import Path
from typing import Any

COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
POSITIONS = ("left of", "right of", "above", "below")
TAGS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
_NUMBERS = {"two": 2, "three": 3, "four": 4}


@functools.cache
def _stored() -> dict[str, Any]:
    path = Path(__file__).with_name("geneval.json")
    return json.loads(path.read_text(encoding="utf-8"))


def class_names() -> list[str]:
    """COCO's 80 classes in the order of the detector, as GenEval calls them."""
    return list(_stored()["names"])


def geneval_prompts() -> list[dict[str, Any]]:
    """The 553 prompts with what they ask for."""
    return [dict(row) for row in _stored()["prompts"]]


def parse_geneval(prompt: str) -> dict[str, Any]:
    """What a prompt of one of the six templates, or an object alone (`red dog`), asks for.

    Raises ValueError for any other prompt.
    """
    text = " ".join(prompt.lower().rstrip(". ").split()).removeprefix("a photo of ")
    found = _counted(text) or _two(text)
    single = None if found else _thing(text) or _thing(f"a {text}")  # as class labels are
    if single:
        found = {"tag": "colors" if "color" in single else "single_object", "include": [single]}
    if found is None:
        raise ValueError(
            f"{prompt!r} is no prompt of GenEval; allowed are `a photo of` one or two objects of "
            "COCO, each with a colour or none, one beside another, or two to four of a kind"
        )
    return found


def _thing(text: str) -> dict[str, Any] | None:
    """The clause of `a bench` or `a red bench`."""
    found = re.fullmatch(r"an? (.+)", text)
    if found and found[1] in class_names():
        return {"class": found[1], "count": 1}
    found = re.fullmatch(r"an? (\w+) (.+)", text)
    if found and found[1] in COLOURS and found[2] in class_names():
        return {"class": found[2], "count": 1, "color": found[1]}
    return None


def _counted(text: str) -> dict[str, Any] | None:
    word, _, many = text.partition(" ")
    for name in class_names() if word in _NUMBERS else ():
        if many == name + ("es" if name.endswith("s") else "s"):
            count = _NUMBERS[word]
            return {
                "tag": "counting",
                "include": [{"class": name, "count": count}],
                "exclude": [{"class": name, "count": count + 1}],
            }
    return None


def _two(text: str) -> dict[str, Any] | None:
    for word in (*POSITIONS, "and"):
        left, between, right = text.partition(f" {word} ")
        first, second = _thing(left), _thing(right)
        if not between or first is None or second is None:
            continue
        coloured = "color" in first, "color" in second
        if word == "and" and len(set(coloured)) == 1:
            tag = "color_attr" if all(coloured) else "two_object"
            return {"tag": tag, "include": [first, second]}
        if word != "and" and not any(coloured):
            return {"tag": "position", "include": [second, first | {"position": [word, 0]}]}
    return None
