"""Pictures of one's own: a folder, webdataset .tar files, or a `datasets` dataset."""

import hashlib
import importlib.util
import json
import logging
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image, ImageOps
from torch import Tensor

from align.nar.training.captions import caption_beside, one_caption, read_metadata
from align.runs.pictures import FAULTS, SUFFIXES, is_picture, read_picture, rgb

log = logging.getLogger(__name__)
UNREAD = (".heic", ".heif", ".avif", ".jxl", ".dng", ".cr2", ".nef", ".arw", ".psd", ".svg")


@dataclass(frozen=True)
class Picture:
    """One training picture; `open` reads it when it is needed."""

    name: str
    open: Callable[[], Image.Image]
    label: str | None = None
    caption: str | None = None


def find_pictures(data: str) -> list[Picture]:
    """List the pictures of a folder, of .tar files (`a.tar`, or a pattern) or of a dataset.

    In a folder, the label is the first subfolder, and the caption the `text` of `metadata.jsonl` or
    `metadata.csv`, as imagefolder has them, or the .txt or .caption file of the same name. In .tar
    files they are the members `.cls` and `.txt` of a picture's name; in a dataset, the columns
    `label` and `text` or `caption`.

    Raises:
        FileNotFoundError: there is no such folder or file.
        ValueError: there are no pictures in it, or a needed package is missing.
    """
    if not data:
        raise ValueError("there is no data: give --data a folder, .tar files or a dataset's name")
    path = Path(data).expanduser()
    if path.is_dir() and not (path / "dataset_info.json").exists():
        pictures = _from_folder(path)
    elif data.endswith(".tar"):
        files = [path] if path.is_file() else sorted(path.parent.glob(path.name))
        if not files:
            raise FileNotFoundError(f"there are no files {data}")
        pictures = [picture for file in files for picture in _from_tar(file)]
    elif path.is_dir() or (data.count("/") <= 1 and not data.startswith((".", "/", "~"))):
        pictures = _from_datasets(data)
    else:
        raise FileNotFoundError(f"there is no folder, .tar file or dataset {data}")
    if not pictures:
        raise ValueError(f"{data} has no pictures ({', '.join(SUFFIXES)})")
    return pictures


def _from_folder(folder: Path) -> list[Picture]:
    files = [
        file
        for file in sorted(folder.rglob("*"))
        if is_picture(file.relative_to(folder)) and file.is_file()
    ]
    _tell_of_others(folder)
    told, pictures = read_metadata(folder, files), []
    for file in files:
        parts = file.relative_to(folder).parts
        label, caption = told.get(file, (None, None))
        pictures.append(
            Picture(
                str(file),
                partial(read_picture, file),
                label or (parts[0] if len(parts) > 1 else None),
                caption or caption_beside(file),
            )
        )
    return pictures


def _tell_of_others(folder: Path) -> None:
    """Say which pictures are left out, as they are in a format that is not read."""
    left = [file for file in folder.rglob("*") if file.suffix.lower() in UNREAD]
    if left:
        log.warning(
            "%d pictures are left out (the first is %s); convert them to one of %s",
            len(left),
            left[0],
            ", ".join(SUFFIXES),
        )


def _from_tar(file: Path) -> list[Picture]:
    """Members of one name (up to its first dot) belong together, as webdataset has it."""
    groups: dict[str, dict[str, tarfile.TarInfo]] = {}
    with tarfile.open(file, "r:") as archive:
        for member in archive:
            folder, _, base = member.name.rpartition("/")
            if member.isfile() and is_picture(f"{folder}/{base.partition('.')[0]}.png"):
                stem, _, suffix = base.partition(".")
                groups.setdefault(f"{folder}/{stem}", {})[f".{suffix.lower()}"] = member

    def read(member: tarfile.TarInfo) -> bytes:
        with file.open("rb") as stream:
            stream.seek(member.offset_data)
            return stream.read(member.size)

    pictures = []
    for name, members in groups.items():
        image = next((members[s] for s in SUFFIXES if s in members), None)
        if image is None:
            continue
        label, caption = (
            _decoded(f"{file}, member {name}{s}", read(members[s])) if s in members else None
            for s in (".cls", ".txt")
        )
        opener = lambda member=image: read_picture(read(member), member.name)  # noqa: E731
        pictures.append(Picture(f"{file}:{name}", opener, label, caption))
    return pictures


def _decoded(where: str, data: bytes) -> str:
    try:
        return data.decode("utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise ValueError(f"{where}, is not UTF-8 (byte {error.start})") from error


def _from_datasets(name: str) -> list[Picture]:
    if importlib.util.find_spec("datasets") is None:
        raise ValueError(
            f"{name} is no folder or .tar file; for datasets by name: pip install datasets"
        )
    import datasets  # pyright: ignore[reportMissingImports]

    if Path(name).is_dir():
        loaded: Any = datasets.load_from_disk(name)
    else:
        loaded = datasets.load_dataset(name)
    rows = loaded["train"] if hasattr(loaded, "keys") else loaded
    columns = rows.column_names
    if "image" not in columns:
        raise ValueError(f"dataset {name} has no column `image`; it has {', '.join(columns)}")
    caption = next((c for c in ("text", "caption", "prompt") if c in columns), None)
    names = getattr(rows.features.get("label"), "names", None)
    texts = rows[caption] if caption else [None] * len(rows)
    labels = rows["label"] if "label" in columns else [None] * len(rows)
    return [
        Picture(
            f"{name}[{i}]",
            lambda i=i: rows[i]["image"],
            None if labels[i] is None else (names[labels[i]] if names else str(labels[i])),
            one_caption(texts[i]),
        )
        for i in range(len(rows))
    ]


def load_pixels(picture: Picture, size: tuple[int, int]) -> UInt8[Tensor, "3 h w"]:
    """A picture as RGB, resized and centre-cropped to (height, width).

    Raises ValueError naming a picture that cannot be read.
    """
    height, width = size
    try:
        image = rgb(picture.open())
    except FAULTS as error:
        raise ValueError(f"{picture.name} cannot be read as a picture: {error}") from error
    if image.size != (width, height):
        image = ImageOps.fit(image, (width, height), Image.Resampling.LANCZOS)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def fingerprint(pictures: list[Picture], *facts: Any) -> str:
    """A hash of what was listed and of further facts, to know a cache by."""
    facts = ("upright, on white", *facts)  # how pictures are read
    digest = hashlib.sha256(json.dumps([str(fact) for fact in facts]).encode())
    for picture in pictures:
        file = Path(picture.name)
        stamp = file.stat().st_mtime_ns if file.is_file() else 0
        digest.update(f"{picture.name}|{stamp}|{picture.label}|{picture.caption}\n".encode())
    return digest.hexdigest()
