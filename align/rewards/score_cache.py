"""Scores that were paid for once: in memory, and in the run's folder as `scores.jsonl`.

A server need not say the same twice, so a resumed update takes its scores from that file, by
update, index and term. Where those do not decide, equal pixels asked the same have equal scores.
"""

import dataclasses
import json
import math
import os
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path

FILE = "scores.jsonl"
KEPT = 100_000  # scores in memory


class ScorerFailed(RuntimeError):
    """A server gave no score; one sentence that says which and why."""


@dataclass(frozen=True)
class Place:
    """Where in a run images are scored."""

    folder: Path
    purpose: str
    """update, pictures or judge: each counts its images by itself."""
    update: int
    indices: Sequence[int]
    """The number of each image."""


_PLACE: ContextVar[Place | None] = ContextVar("place_in_run", default=None)


@contextmanager
def placed(folder: Path, purpose: str, update: int, indices: Sequence[int]) -> Iterator[None]:
    """Say where in a run the images scored in this block stand."""
    token = _PLACE.set(Place(folder, purpose, update, indices))
    try:
        yield
    finally:
        _PLACE.reset(token)


@contextmanager
def rows(picked: Sequence[int]) -> Iterator[None]:
    """Within this block only these of the images are scored."""
    place = _PLACE.get()
    if place is None:
        yield
        return
    token = _PLACE.set(dataclasses.replace(place, indices=[place.indices[row] for row in picked]))
    try:
        yield
    finally:
        _PLACE.reset(token)


@dataclass(frozen=True)
class Asked:
    """An image to score: the hash of all that is asked but its pixels, and the hash of those."""

    request: str
    picture: str


class ScoreCache:
    """The scores of one term."""

    def __init__(self, term: str):
        self.term = term
        self.by_picture: OrderedDict[Asked, float] = OrderedDict()
        self.by_place: dict[tuple, float] = {}
        self.folder: Path | None = None

    def find(self, row: int, asked: Asked) -> float | None:
        """The score of an image, the `row`-th that is scored now, or None."""
        place = _PLACE.get()
        if place is not None:
            self._open(place.folder)
            known = self.by_place.get(_key(place, row, asked))
            if known is not None:
                return known
        known = self.by_picture.get(asked)
        if known is not None:
            self.keep(row, asked, known)
        return known

    def keep(self, row: int, asked: Asked, score: float) -> None:
        """Remember a score, within a run on the disk too."""
        self._remember(asked, score)
        place = _PLACE.get()
        if place is None or _key(place, row, asked) in self.by_place:
            return
        self.by_place[_key(place, row, asked)] = score
        line = {
            "purpose": place.purpose,
            "update": place.update,
            "index": place.indices[row],
            "term": self.term,
            **dataclasses.asdict(asked),
            "score": score,
        }
        self._append(place.folder / FILE, json.dumps(line) + "\n")

    def _remember(self, asked: Asked, score: float) -> None:
        self.by_picture[asked] = score
        self.by_picture.move_to_end(asked)
        if len(self.by_picture) > KEPT:
            self.by_picture.popitem(last=False)

    def _open(self, folder: Path) -> None:
        """Take in what a run's folder has, once; a line cut short by the run's end is left out."""
        if self.folder == folder:
            return
        self.folder, self.by_place = folder, {}
        if not (folder / FILE).is_file():
            return
        for line in (folder / FILE).read_text(encoding="utf-8", errors="replace").split("\n"):
            try:
                found = json.loads(line)
                asked = Asked(found["request"], found["picture"])
                score, key = found["score"], (found["purpose"], found["update"], found["index"])
            except (ValueError, KeyError, TypeError):
                continue
            if found["term"] == self.term and isinstance(score, float) and math.isfinite(score):
                self.by_place[(*key, asked.request)] = score
                self._remember(asked, score)

    def _append(self, path: Path, line: str) -> None:
        """Add a line in one write, so that those of several processes do not mix."""
        torn = path.is_file() and path.stat().st_size and not _ends_a_line(path)
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        try:
            os.write(file, (b"\n" if torn else b"") + line.encode())
        finally:
            os.close(file)


def _key(place: Place, row: int, asked: Asked) -> tuple:
    return place.purpose, place.update, place.indices[row], asked.request


def _ends_a_line(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"
