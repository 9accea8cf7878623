"""Files written whole or not at all, and values as JSON can hold them.

A file is written under a temporary name in its folder and then renamed, so that a crash or a
full disk leaves the former file or none, never half of one.
"""

import errno
import json
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout


def write_atomic(path: str | Path, data: bytes | str) -> None:
    """Write a file whole or not at all. Raises OSError, in one clear sentence, on a full disk."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data.encode() if isinstance(data, str) else data)


def write_json(path: str | Path, value: Any) -> None:
    """Write a value as indented JSON, whole or not at all; NaN and infinities become null."""
    write_atomic(path, json.dumps(finite(value), indent=2, ensure_ascii=False) + "\n")


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """A temporary file name beside `path`; what was written there becomes `path` on success."""
    path = Path(path)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.part{path.suffix}")
    try:
        with clear_disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            with temporary.open("rb+") as written:  # Windows flushes only what is open for writing
                os.fsync(written.fileno())
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def claimed(path: str | Path, wait: bool = False) -> Iterator[bool]:
    """Whether this process holds the lock `path` while the context lasts.

    With `wait` it does in the end. The lock ends with its process; its file stays.
    """
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    try:
        lock.acquire(blocking=wait)
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


@contextmanager
def clear_disk_errors(path: Path) -> Iterator[None]:
    """Say in one sentence what a full disk has kept from being written."""
    try:
        yield
    except Exception as error:  # safetensors has an error class of its own, without errno
        number = error.errno if isinstance(error, OSError) else None
        full = number in (errno.ENOSPC, errno.EDQUOT) or "No space left on device" in str(error)
        if not full:
            raise
        raise OSError(
            errno.ENOSPC, f"the disk is full: {path} was not written; free some space"
        ) from error


def finite(value: Any) -> Any:
    """The value with tensors and numpy scalars as numbers, and what JSON cannot say as null."""
    if isinstance(value, dict):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    if hasattr(value, "tolist"):
        return finite(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value


def read_text(path: Path, what: str) -> str:
    """A text file of other people's, without the mark that files from Windows start with.

    UTF-8, or UTF-16 with its mark. Raises ValueError naming file, line and byte otherwise.
    """
    data = path.read_bytes()
    encoding = "utf-16" if data.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig"
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"{what} {path}, line {line}, is not UTF-8 (byte {error.start}); save it as UTF-8"
        ) from error


def brief(error: BaseException, limit: int = 400) -> str:
    """A foreign error's message on one line; its class where it has none."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= limit else f"{text[:limit]}…"
