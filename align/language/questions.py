"""Benchmarks that ask questions about a picture: the rows of a prompt become one.

| benchmark | question | needs a yes to | category |
| --- | --- | --- | --- |
| DSG-1k, DPG-Bench | `question_natural_language` | `dependency` | `category_broad` |
| TIFA | `question`, `choices`, `answer` | | `element_type` |
| any JSON | `questions`, a list of what is below | `parents` | `category` |

The prompt's metadata then hold `questions`, a list of `{"id", "question", "parents", "category"}`,
and `choices` and `answer` where the file has them.
"""

import re
from collections.abc import Sequence
from typing import Any

from align.language.prompt_files import Row

ASKS = ("question_natural_language", "question")
CATEGORIES = ("category_broad", "element_type", "category")


def gather(rows: Sequence[Row]) -> list[Row]:
    """The rows as they are; where rows have a question each, those of a prompt become one.

    A column that differs between them holds the list of its values, row by row.
    """
    if not any(_asked(row) for _, row in rows):
        return list(rows)
    grouped: dict[str, list[dict[str, Any]]] = {}
    for prompt, row in rows:
        if row not in grouped.setdefault(prompt, []):
            grouped[prompt].append(row)
    return [
        (prompt, joined(mine) | {"questions": [_question(i, r) for i, r in enumerate(mine, 1)]})
        for prompt, mine in grouped.items()
    ]


def joined(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Several rows as one."""
    one = dict(rows[0])
    for key in dict.fromkeys(key for row in rows for key in row):
        values = [row.get(key) for row in rows]
        one[key] = values[0] if all(value == values[0] for value in values) else values
    return one


def _asked(row: dict[str, Any]) -> str | None:
    found = (row.get(name) for name in ASKS)
    return next((text.strip() for text in found if isinstance(text, str) and text.strip()), None)


def _question(number: int, row: dict[str, Any]) -> dict[str, Any]:
    parents = re.findall(r"\d+", str(row.get("dependency") or ""))
    made: dict[str, Any] = {
        "id": str(row.get("proposition_id") or number).strip(),
        "question": _asked(row) or "",
        "parents": [parent for parent in parents if parent != "0"],
        "category": str(next((row[name] for name in CATEGORIES if row.get(name)), "")),
    }
    return made | {key: row[key] for key in ("choices", "answer") if row.get(key)}
