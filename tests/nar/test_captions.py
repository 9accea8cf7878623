"""Captions of a folder in the forms that imagefolder and trainers' tools write."""

import json

import numpy as np
import pytest
from PIL import Image

from align.nar.training.data import find_pictures

WORDS = {"0.png": "a red circle", "1.png": "two stars"}


@pytest.fixture
def folder(tmp_path):
    for name in WORDS:
        Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(tmp_path / name)
    return tmp_path


def captions(folder):
    return {p.name.rpartition("/")[2]: p.caption for p in find_pictures(str(folder))}


def jsonl(rows, **settings):
    return "\n".join(json.dumps(row, ensure_ascii=False, **settings) for row in rows)


ROWS = [{"file_name": name, "text": text} for name, text in WORDS.items()]
METADATA = {
    "plain": ("metadata.jsonl", jsonl(ROWS)),
    "blank last lines": ("metadata.jsonl", jsonl(ROWS) + "\r\n\n  \n"),
    "a mark": ("metadata.jsonl", "\ufeff" + jsonl(ROWS)),
    "of a split": (
        "metadata.jsonl",
        jsonl([row | {"file_name": f"train/{row['file_name']}"} for row in ROWS]),
    ),
    "of Windows": (
        "metadata.jsonl",
        jsonl([row | {"file_name": f".\\data\\{row['file_name']}"} for row in ROWS]),
    ),
    "other keys": (
        "metadata.jsonl",
        jsonl([{"Image": row["file_name"], "Caption": row["text"], "n": 1} for row in ROWS]),
    ),
    "several captions": (
        "metadata.jsonl",
        jsonl([{"file_name": r["file_name"], "captions": [r["text"], "x"]} for r in ROWS]),
    ),
    "a table": ("metadata.csv", "file_name,text\n0.png,a red circle\n1.png,two stars\n\n"),
    "a table of Windows": (
        "metadata.csv",
        '\ufefffile_name;text\r\n0.png;"a red circle"\r\n1.png;two stars\r\n',
    ),
}


@pytest.mark.parametrize("form", METADATA)
def test_metadata(form, folder):
    name, text = METADATA[form]
    (folder / name).write_text(text, encoding="utf-8", newline="")
    assert captions(folder) == WORDS


def test_metadata_of_a_subfolder_and_its_labels(folder):
    (folder / "train").mkdir()
    for name in WORDS:
        (folder / name).rename(folder / "train" / name)
    (folder / "train" / "metadata.jsonl").write_text(jsonl(ROWS))
    assert captions(folder) == WORDS
    rows = [{"file_name": name, "label": 3} for name in WORDS]
    (folder / "train" / "metadata.jsonl").write_text(jsonl(rows))
    assert [p.label for p in find_pictures(str(folder))] == ["3", "3"]


def test_a_separator_of_unicode_is_text(folder):
    text = "a cat\u2028on\u0085a mat"
    (folder / "metadata.jsonl").write_text(
        jsonl([{"file_name": "0.png", "text": text}]), encoding="utf-8"
    )
    assert captions(folder) == {"0.png": text, "1.png": None}


def test_text_files_beside(folder):
    (folder / "0.txt").write_text("a red circle\n", encoding="utf-8-sig")
    (folder / "1.caption").write_text("two stars", encoding="utf-16")
    assert captions(folder) == WORDS


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        (
            "metadata.jsonl",
            b'{"file_name": "0.png", "text": "x"}\n{',
            r"line 2 is not JSON",
        ),
        ("metadata.jsonl", b'["0.png"]', r"metadata\.jsonl, line 1 is no JSON object"),
        ("metadata.jsonl", b'{"name": "0.png"}', r"line 1 names no picture .* it has name"),
        (
            "metadata.jsonl",
            b'{"file_name": "0.png", "words": "x"}',
            r"metadata\.jsonl, line 1 has no caption under `text`; it has file_name, words",
        ),
        (
            "metadata.jsonl",
            b'{"file_name": "0.png", "text": 3}',
            r"a caption is text, got 3",
        ),
        (
            "metadata.jsonl",
            b'{"file_name": "7.png", "text": "x"}',
            r"metadata\.jsonl fits no picture beside it: line 1 names 7\.png",
        ),
        (
            "metadata.jsonl",
            b'{"file_name": "0.png", "text": "x"}\n{"file_name": "1.png", "text": "caf\xe9"}',
            r"metadata\.jsonl, line 2, is not UTF-8",
        ),
        (
            "metadata.csv",
            b"picture,text\n0.png,x\n",
            r"no column `file_name`; its columns are",
        ),
        ("metadata.csv", b"file_name,text\n0.png,x,y\n", r"metadata\.csv, line 2: more columns"),
        ("metadata.parquet", b"PAR1", r"metadata\.parquet is not read; write its rows to"),
        ("0.txt", b"one\ncaf\xe9", r"0\.txt, line 2, is not UTF-8 \(byte 7\)"),
    ],
)
def test_what_cannot_be_read_is_named(folder, name, data, message):
    (folder / name).write_bytes(data)
    with pytest.raises(ValueError, match=message):
        find_pictures(str(folder))
