"""The run folders that the demo makes, `runs/demo/NAME`, and their clean-up.

A note `runs/demo/notes/NAME.json` says that a folder is the demo's own; nothing else is removed.
"""

import json
import logging
import secrets
import shutil
import time
from collections.abc import Collection
from pathlib import Path
from typing import Any

from align.demo.choices import RUNS
from align.runs.files import write_json

log = logging.getLogger(__name__)
HOME = RUNS / "demo"
NOTES = HOME / "notes"
QUOTA = 2_000_000_000  # bytes that all of them may take
MOST = 50  # folders that are kept


def reserve(kind: str, **facts: Any) -> Path:
    """A new folder's path, noted as the demo's own; whoever runs there makes it."""
    name = f"{kind}-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(3)}"
    write_json(NOTES / f"{name}.json", {"made": time.time(), **facts})
    return HOME / name


def note_of(folder: Path) -> dict[str, Any]:
    """What was noted of a folder; empty where it is not the demo's own."""
    try:
        note = json.loads((NOTES / f"{folder.name}.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return note if isinstance(note, dict) else {}


def folders(kind: str = "") -> list[Path]:
    """The demo's own folders that are there, the oldest first."""
    noted = [HOME / path.stem for path in NOTES.glob(f"{kind}*.json")]
    there = [folder for folder in noted if folder.is_dir() and not folder.is_symlink()]
    return sorted(there, key=lambda folder: (note_of(folder).get("made", 0), folder.name))


def clean_up(busy: Collection[Path] = ()) -> None:
    """Remove the oldest of the demo's folders until they keep to QUOTA and MOST."""
    kept = folders()
    sizes = {folder: _size(folder) for folder in kept}
    for folder in list(kept):
        if len(kept) <= MOST and sum(sizes[one] for one in kept) <= QUOTA:
            return
        if folder not in busy:
            log.info("%s is removed, to keep to the demo's share of the disk", folder)
            shutil.rmtree(folder, ignore_errors=True)
            for note in NOTES.glob(f"{folder.name}.*"):
                note.unlink(missing_ok=True)
            kept.remove(folder)


def _size(folder: Path) -> int:
    files = (path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    return sum(file.stat().st_size for file in files)
