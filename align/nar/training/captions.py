"""Captions and labels of a folder's pictures: imagefolder's metadata, or text files beside."""

import json
import logging
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from align.language.prompt_files import LINE_END, TABLES, find_column, read_table
from align.runs.files import brief, read_text

log = logging.getLogger(__name__)
METADATA = ("metadata.jsonl", "metadata.csv")
BESIDE = (".txt", ".caption")
PICTURE_COLUMNS = ("file_name", "filename", "file", "image", "image_path", "img", "path")
CAPTION_COLUMNS = ("text", "caption", "prompt", "captions", "description")
LABEL_COLUMNS = ("label", "class")
Told = tuple[str | None, str | None]


def read_metadata(folder: Path, pictures: list[Path]) -> dict[Path, Told]:
    """(label, caption) by picture, from `metadata.jsonl` or `.csv` in the folder or below.

    A row's picture is named from its file's folder, or by the end of such a path. Raises
    ValueError, naming file and line, for what cannot be read or names no picture that is there.
    """
    told: dict[Path, Told] = {}
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        if file.name.lower() == "metadata.parquet":
            raise ValueError(f"{file} is not read; write its rows to {' or '.join(METADATA)}")
        if file.name.lower() not in METADATA:
            continue
        missing, found = [], 0
        for line, row in _rows(file):
            name, entry = _entry(f"{file}, line {line}", row)
            picture = _named(file.parent, name, pictures)
            if picture is None:
                missing.append(f"line {line} names {name}")
            else:
                told[picture], found = entry, found + 1
        if missing and not found:
            raise ValueError(f"{file} fits no picture beside it: {missing[0]}, which is not there")
        if missing:
            log.warning(
                "%s: %d of %d rows have no picture", file, len(missing), len(missing) + found
            )
    return told


def caption_beside(picture: Path) -> str | None:
    """The text of the file of a picture's name that ends in .txt or .caption."""
    for suffix in BESIDE:
        if (beside := picture.with_suffix(suffix)).is_file():
            return read_text(beside, "caption file").strip() or None
    return None


def one_caption(value: Any) -> str | None:
    """A caption as it stands, or the first of several. Raises TypeError for what is no text."""
    if isinstance(value, list | tuple):
        value = next((text for text in value if text), None)
    if value is not None and not isinstance(value, str):
        raise TypeError(f"a caption is text, got {value!r:.60}")
    return (value or "").strip() or None


def _rows(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    text = read_text(file, "file")
    if file.suffix.lower() == ".csv":
        yield from read_table(file, text, TABLES[".csv"], PICTURE_COLUMNS)
        return
    for number, line in enumerate(LINE_END.split(text), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{file}, line {number} is not JSON: {brief(error)}") from error
        if not isinstance(row, dict):
            raise ValueError(f"{file}, line {number} is no JSON object")
        yield number, row


def _entry(where: str, row: dict[str, Any]) -> tuple[str, Told]:
    keys = [find_column(row, known) for known in (PICTURE_COLUMNS, CAPTION_COLUMNS, LABEL_COLUMNS)]
    picture, caption, label = keys
    if picture is None or not isinstance(row[picture], str) or not row[picture].strip():
        raise ValueError(f"{where} names no picture under `file_name`; it has {', '.join(row)}")
    if caption is None and label is None:
        raise ValueError(f"{where} has no caption under `text`; it has {', '.join(row)}")
    try:
        text = one_caption(row[caption]) if caption else None
    except TypeError as error:
        raise ValueError(f"{where}: {error}") from error
    stated = str(row[label]) if label and row[label] not in (None, "") else None
    return row[picture].strip(), (stated, text)


def _named(folder: Path, name: str, pictures: list[Path]) -> Path | None:
    """The picture of this path from the folder, or of an end of it, or alone of this name."""
    parts, known = PurePosixPath(name.replace("\\", "/")).parts, set(pictures)
    for start in range(len(parts)):
        if (path := folder.joinpath(*parts[start:])) in known:
            return path
    alike = [p for p in pictures if parts and p.name == parts[-1] and folder in p.parents]
    return alike[0] if len(alike) == 1 else None
