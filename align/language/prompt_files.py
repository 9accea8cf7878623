"""The one reader of prompt files: text, CSV, TSV, JSON lines and JSON, as benchmarks and
spreadsheets write them. Lines end at CR, LF or both; other separators of Unicode are text."""

import csv
import io
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from align.runs.files import brief, read_text

Row = tuple[str, dict[str, Any]]
PROMPT_COLUMNS = (
    "prompt",
    "prompts",
    "original_prompt",
    "original_prompts",
    "synthetic_prompt",
    "synthetic_prompts",
    "meta_prompt",
    "text",
    "caption",
)
PLAIN = (".txt", ".text", ".prompts", ".lst", ".list", "")
TABLES = {".csv": ",;\t", ".tsv": "\t"}
JSON_LINES = (".jsonl", ".ndjson")
SUFFIXES = (".txt", ".csv", ".tsv", ".jsonl", ".ndjson", ".json")
LINE_END = re.compile("\r\n|\r|\n")


def read_prompts(path: Path) -> list[Row]:
    """(prompt, what else its row says) of a file; its suffix, in any case, says the format.

    A table's header, or a JSON object, names the prompt in one of `PROMPT_COLUMNS`, in any case.
    JSON is a list of texts or objects, an object of them, or one of such lists by category.
    Raises ValueError, naming the file and line or row, for what is none of it.
    """
    kind = path.suffix.lower()
    if kind not in (*PLAIN, *SUFFIXES):
        raise ValueError(
            f"prompt file {path} ends in {path.suffix}; known are {', '.join(SUFFIXES)}"
        )
    text = read_text(path, "prompt file")
    if kind in TABLES:
        return list(_table(path, text, TABLES[kind]))
    if kind in JSON_LINES:
        return _json_lines(path, text)
    if kind == ".json":
        return _json(path, text)
    return [(line.strip(), {}) for line in LINE_END.split(text) if line.strip()]


def _table(path: Path, text: str, delimiters: str) -> Iterator[Row]:
    for line, row in read_table(path, text, delimiters, PROMPT_COLUMNS):
        prompt = row.pop(find_column(row, PROMPT_COLUMNS) or "")
        if not (prompt or "").strip():
            raise ValueError(f"{path}, line {line}: no prompt")
        yield prompt.strip(), row


def read_table(
    path: Path, text: str, delimiters: str, wanted: tuple[str, ...]
) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line, row by column) of a table, by the first delimiter whose header has a wanted column.

    Raises ValueError, naming the line, where a row is malformed or longer than the header.
    """
    start, text = _separator(text)
    reader, header = _open_table(text, start or delimiters, wanted, strict=True)
    if (start or delimiters) == "\t" and not _is_quoted(text):  # most TSV has no quoting
        reader, header = _open_table(text, "\t", wanted, strict=False)
    columns = [name.strip() for name in header]
    if header and find_column(columns, wanted) is None:
        raise ValueError(
            f"{path} has no column `{wanted[0]}`; its columns are {', '.join(columns)}"
        )
    while True:
        number = reader.line_num + 1 + (start is not None)
        try:
            cells = next(reader, None)
        except csv.Error as error:
            raise ValueError(f"{path}, line {number} is no row of a table ({error})") from error
        if cells is None:
            return
        if not any(cell.strip() for cell in cells):
            continue
        if any(cells[len(columns) :]):
            raise ValueError(
                f"{path}, line {number}: more columns than its header; a text with a "
                f"{_name(reader.dialect.delimiter)} in it needs quotes around it"
            )
        row = dict(zip(columns, [*cells, *[None] * len(columns)], strict=False))
        yield number, {key: value for key, value in row.items() if key}


def _separator(text: str) -> tuple[str | None, str]:
    """The separator that a spreadsheet's first line `sep=;` states, and the text after it."""
    stated = re.match("sep=(.)(?:\r\n|\r|\n)", text, re.IGNORECASE)
    return (stated[1], text[stated.end() :]) if stated else (None, text)


def _open_table(
    text: str, delimiters: str, wanted: tuple[str, ...], *, strict: bool
) -> tuple[Any, list[str]]:
    """A reader past its header, by the first delimiter whose header has a wanted column."""
    tried = []
    for delimiter in delimiters:
        settings: dict[str, Any] = {"delimiter": delimiter, "strict": strict}
        settings |= {"skipinitialspace": True} if strict else {"quoting": csv.QUOTE_NONE}
        reader = csv.reader(io.StringIO(text, newline=""), **settings)
        try:
            header = next((row for row in reader if any(row)), [])
        except csv.Error:  # quotes that belong to another delimiter
            header = ["?"]
        if find_column([name.strip() for name in header], wanted):
            return reader, header
        tried.append((reader, header))
    return tried[0]


def _is_quoted(text: str) -> bool:
    try:
        return bool(list(csv.reader(io.StringIO(text, newline=""), delimiter="\t", strict=True)))
    except csv.Error:
        return False


def _name(delimiter: str) -> str:
    return {",": "comma", ";": "semicolon", "\t": "tab"}.get(delimiter, repr(delimiter))


def _json_lines(path: Path, text: str) -> list[Row]:
    rows = []
    for number, line in enumerate(LINE_END.split(text), start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except ValueError as error:
            if not rows and (whole := _loads(text)) is not None:  # a list, whatever its name says
                return _entries(path, whole)
            raise ValueError(f"{path}, line {number} is not JSON: {brief(error)}") from error
        rows += _entries(path, value) if isinstance(value, list) else []
        if not isinstance(value, list):
            rows.append(_row(f"{path}, line {number}", value))
    return rows


def _json(path: Path, text: str) -> list[Row]:
    if not text.strip():
        return []
    try:
        return _entries(path, json.loads(text))
    except json.JSONDecodeError as error:
        if error.msg == "Extra data" and "\n" in text[: error.pos]:  # JSON lines under this name
            return _json_lines(path, text)
        raise ValueError(f"prompt file {path} is not JSON: {error}") from error


def _loads(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None


def _entries(path: Path, value: Any) -> list[Row]:
    """The rows of a JSON file's value."""
    if isinstance(value, dict):
        column, cells = find_column(value, PROMPT_COLUMNS), list(value.values())
        if column and isinstance(value[column], str):
            return [_row(str(path), value)]
        if column and isinstance(value[column], list):
            cells = _by_row(path, value, column)
        elif len(cells) == 1 and isinstance(cells[0], list | dict):
            return _entries(path, cells[0])
        elif cells and all(isinstance(cell, list) for cell in cells):
            return [
                (prompt, {"category": str(key)} | rest)
                for key, entries in value.items()
                for prompt, rest in _entries(path, entries)
            ]
        value = cells
    if not isinstance(value, list):
        raise ValueError(f"prompt file {path} is no JSON list of prompts, nor an object of them")
    return [_row(f"row {number} of {path}", entry) for number, entry in enumerate(value, start=1)]


def _by_row(path: Path, table: dict[str, Any], column: str) -> list[Any]:
    """The rows of a table that JSON holds by columns, or its one list of objects."""
    if any(isinstance(entry, dict) for entry in table[column]):
        return table[column]
    lists = {name: cells for name, cells in table.items() if isinstance(cells, list)}
    count = len(table[column])
    for name, cells in lists.items():
        if len(cells) != count:
            raise ValueError(
                f"prompt file {path} has {count} entries under {column!r}, "
                f"but {len(cells)} under {name!r}"
            )
    return [dict(zip(lists, cells, strict=True)) for cells in zip(*lists.values(), strict=True)]


def _row(where: str, value: Any) -> Row:
    if isinstance(value, str):
        value = {"prompt": value}
    column = find_column(value, PROMPT_COLUMNS) if isinstance(value, dict) else None
    prompt = value[column] if column else None
    if not isinstance(prompt, str) or not prompt.strip():
        raise ValueError(f"{where} has no text under `prompt`")
    return prompt.strip(), {key: cell for key, cell in value.items() if key != column}


def find_column(columns: Iterable[str], wanted: tuple[str, ...]) -> str | None:
    """The first wanted one of these columns, in any case."""
    names = {str(name).strip().lower(): name for name in reversed(list(columns))}
    return next((names[name] for name in wanted if name in names), None)
