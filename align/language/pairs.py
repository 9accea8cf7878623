"""Pairs of pictures that people have rated: of one prompt, the chosen and the rejected one.

Read from a table (CSV, TSV, JSON lines, JSON, Parquet), a folder or a webdataset .tar:

- a table has the columns prompt (or caption), chosen and rejected with paths relative to it, and
  may have margin, or score_chosen and score_rejected. Pick-a-Pic's own layout (caption, jpg_0,
  jpg_1, label_0) is taken as it is.
- a folder has chosen/NAME.png, rejected/NAME.png and NAME.txt with the prompt, there or in chosen/.
- a .tar has members KEY.chosen.png, KEY.rejected.png and KEY.txt.
"""

import importlib.util
import tarfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from align.language.prompt_files import SUFFIXES as TABLES
from align.language.prompt_files import find_column, read_prompts
from align.runs.files import read_text
from align.runs.pictures import is_picture, read_picture

CHOSEN = ("chosen", "preferred", "winner")
REJECTED = ("rejected", "dispreferred", "loser")
FIRST, SECOND, LABEL = "jpg_0", "jpg_1", "label_0"  # Pick-a-Pic's
LEAST_SIDE = 2  # px


@dataclass(frozen=True)
class Source:
    """A picture that is read when it is needed."""

    name: str
    open: Callable[[], Image.Image]


@dataclass(frozen=True)
class Pair:
    """A prompt with the picture that was chosen and the one that was rejected (None: none was)."""

    prompt: str
    chosen: Source
    rejected: Source | None


def read_pairs(path: str | Path, rejected: bool = True) -> list[Pair]:
    """The pairs of a file or folder, ties left out; without `rejected` the chosen pictures alone.

    Raises FileNotFoundError where there is nothing, ValueError for a table without one of the
    columns (naming those it has), a pair without a picture, or with the same one twice, and where
    no pair is left. Pictures are not opened yet, see `open_picture`.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        pairs = _folder(path, rejected)
    elif not path.is_file():
        raise FileNotFoundError(f"there is no file or folder {path} of pairs")
    elif path.suffix == ".tar":
        pairs = _tar(path, rejected)
    else:
        pairs = _rows(path, rejected)
    found = list(pairs)
    if not found:
        raise ValueError(f"{path} has no pairs, or ties alone; at least one is needed")
    return found


def open_picture(source: Source) -> Image.Image:
    """The picture, RGB. Raises ValueError naming one that cannot be read or is no picture."""
    picture = source.open()
    if min(picture.size) < LEAST_SIDE:
        width, height = picture.size
        raise ValueError(f"{source.name} has {width}x{height} pixels; at least 2x2 are needed")
    return picture


def _rows(path: Path, rejected: bool) -> Iterator[Pair]:
    """The pairs of a table, row by row."""
    known: Iterable[tuple[str, dict[str, Any]]]
    if path.suffix.lower() == ".parquet":
        known = _parquet(path)
    elif path.suffix.lower() in TABLES:
        known = read_prompts(path)
    else:
        raise ValueError(
            f"{path} ends in {path.suffix or 'nothing'}; pairs are read from a folder, .tar, "
            f".parquet or one of {', '.join(kind for kind in TABLES if kind != '.txt')}"
        )
    for number, (prompt, row) in enumerate(known, start=1):
        where = f"{path}, pair {number}"
        if find_column(row, (FIRST,)) and find_column(row, (LABEL,)):
            row = _of_pick_a_pic(row)
        if row is None:  # a tie
            continue
        cells = {}
        for columns, needed in ((CHOSEN, True), (REJECTED, rejected)):
            column = find_column(row, columns)
            if needed and column is None:
                raise ValueError(
                    f"{path} has no column `{columns[0]}`; its columns are {', '.join(row)}"
                )
            cells[columns[0]] = None if column is None else row[column]
        better = _margin(row)
        if better == 0:
            continue
        if better < 0:
            cells = {"chosen": cells["rejected"], "rejected": cells["chosen"]}
        chosen = _source(path.parent, cells["chosen"], f"{where}, chosen")
        other = None
        if rejected:
            if cells["chosen"] == cells["rejected"]:
                raise ValueError(f"{where} has the same picture twice: {_brief(cells['chosen'])}")
            other = _source(path.parent, cells["rejected"], f"{where}, rejected")
        yield Pair(prompt, chosen, other)


def _margin(row: dict[str, Any]) -> float:
    """By how much the chosen one is better, 1 where nothing is said."""
    single = find_column(row, ("margin",))
    both = [find_column(row, (name,)) for name in ("score_chosen", "score_rejected")]
    try:
        if single is not None:
            return float(row[single])
        if all(both):
            return float(row[both[0] or ""]) - float(row[both[1] or ""])
    except (TypeError, ValueError) as error:
        raise ValueError(f"a margin or score of a pair is no number: {error}") from error
    return 1.0


def _of_pick_a_pic(row: dict[str, Any]) -> dict[str, Any] | None:
    """A row of Pick-a-Pic (2305.01569) by our columns; None where label_0 is 0.5, a tie."""
    label = float(row[LABEL])
    if label == 0.5:
        return None
    first, second = (FIRST, SECOND) if label > 0.5 else (SECOND, FIRST)
    return {"chosen": row[first], "rejected": row[second]}


def _parquet(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    if importlib.util.find_spec("pyarrow") is None:
        raise ValueError(f"{path} needs pyarrow: pip install align-diffusion[pairs]")
    from pyarrow import parquet  # pyright: ignore[reportMissingImports]

    for batch in parquet.ParquetFile(path).iter_batches(batch_size=64):
        for row in batch.to_pylist():
            column = find_column(row, ("prompt", "caption", "text"))
            if column is None:
                raise ValueError(f"{path} has no column `prompt`; its columns are {', '.join(row)}")
            yield str(row.pop(column)), row


def _source(folder: Path, cell: Any, where: str) -> Source:
    """The picture of a table's cell: a path, or its bytes as Parquet holds them."""
    if isinstance(cell, dict):  # the `datasets` library's
        cell = cell.get("bytes") or cell.get("path")
    if isinstance(cell, bytes) and cell:
        return Source(where, lambda: read_picture(cell, where))
    if not isinstance(cell, str) or not cell.strip():
        raise ValueError(f"{where}: there is no picture")
    file = folder / Path(cell.strip()).expanduser()
    if not file.is_file():
        raise ValueError(f"{where}: there is no picture {file}")
    return Source(str(file), lambda: read_picture(file))


def _folder(folder: Path, rejected: bool) -> Iterator[Pair]:
    """Pairs by their name in chosen/ and rejected/."""
    if not (folder / "chosen").is_dir():
        inside = ", ".join(sorted(entry.name for entry in folder.iterdir())[:8]) or "nothing"
        raise ValueError(f"{folder} has no folder chosen/; it has {inside}")
    for file in sorted((folder / "chosen").iterdir()):
        if not is_picture(file.name):
            continue
        texts = [place / f"{file.stem}.txt" for place in (folder, folder / "chosen")]
        text = next((text for text in texts if text.is_file()), None)
        if text is None:
            raise ValueError(f"{file} has no prompt; write it into {texts[0]}")
        other = None
        if rejected:
            found = [f for f in (folder / "rejected").glob(f"{file.stem}.*") if is_picture(f.name)]
            if not found:
                raise ValueError(f"{file} has no counterpart in {folder / 'rejected'}")
            other = _source(folder, str(found[0].resolve()), str(found[0]))
        prompt = read_text(text, "prompt file").strip()
        yield Pair(prompt, _source(folder, str(file.resolve()), str(file)), other)


def _tar(file: Path, rejected: bool) -> Iterator[Pair]:
    """Members of one key, up to the name's first dot, belong together, as webdataset has it."""
    groups: dict[str, dict[str, bytes]] = {}
    with tarfile.open(file, "r:*") as archive:
        for member in archive:
            folder, _, base = member.name.rpartition("/")
            key, _, kind = base.partition(".")
            content = archive.extractfile(member) if member.isfile() else None
            if content is not None:
                groups.setdefault(f"{folder}/{key}", {})[kind.lower()] = content.read()
    for key, members in groups.items():
        where = f"{file}, {key.strip('/')}"
        if "txt" not in members:
            raise ValueError(f"{where} has no .txt with its prompt; it has {', '.join(members)}")
        sides = {}
        for side in ("chosen", "rejected") if rejected else ("chosen",):
            found = [kind for kind in members if kind.startswith(f"{side}.")]
            if not found:
                raise ValueError(f"{where} has no .{side}.png; it has {', '.join(members)}")
            sides[side] = members[found[0]]
        if rejected and sides["chosen"] == sides["rejected"]:
            raise ValueError(f"{where} has the same picture twice")
        chosen = _source(file.parent, sides["chosen"], f"{where}, chosen")
        other = _source(file.parent, sides["rejected"], f"{where}, rejected") if rejected else None
        yield Pair(members["txt"].decode(errors="replace").strip(), chosen, other)


def _brief(cell: Any) -> str:
    return repr(cell)[:80]
