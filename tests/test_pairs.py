"""Pairs of pictures: every layout, and what is wrong with one."""

import io
import json
import tarfile

import pyarrow
import pytest
from PIL import Image
from pyarrow import parquet

from align.language.pairs import open_picture, read_pairs

RED, BLUE = "#c81e1e", "#1e3cc8"


def picture(color, size=(8, 6)):
    content = io.BytesIO()
    Image.new("RGB", size, color).save(content, format="png")
    return content.getvalue()


def colors(pairs):
    return [
        tuple(
            None if source is None else open_picture(source).getpixel((0, 0))
            for source in (pair.chosen, pair.rejected)
        )
        for pair in pairs
    ]


def rgb(color):
    return tuple(bytes.fromhex(color[1:]))


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "a.png").write_bytes(picture(RED))
    (tmp_path / "b.png").write_bytes(picture(BLUE))
    return tmp_path


def write_rows(folder, rows, name="pairs.jsonl"):
    file = folder / name
    file.write_text("\n".join(json.dumps(row) for row in rows))
    return file


def test_json_lines_and_csv(folder):
    row = {"prompt": "a circle", "chosen": "a.png", "rejected": "b.png"}
    pairs = read_pairs(write_rows(folder, [row]))
    assert [pair.prompt for pair in pairs] == ["a circle"]
    assert colors(pairs) == [(rgb(RED), rgb(BLUE))]
    table = folder / "pairs.csv"
    table.write_text('Caption,Winner,loser\n"a circle, red",a.png,b.png\n')
    pairs = read_pairs(table)
    assert pairs[0].prompt == "a circle, red"
    assert colors(pairs) == [(rgb(RED), rgb(BLUE))]


def test_scores_turn_pairs_round_and_ties_are_left_out(folder):
    base = {"prompt": "p", "chosen": "a.png", "rejected": "b.png"}
    rows = [
        base | {"score_chosen": 1, "score_rejected": 3},
        base | {"score_chosen": 2, "score_rejected": 2},
        base | {"score_chosen": 3, "score_rejected": 2},
    ]
    assert colors(read_pairs(write_rows(folder, rows))) == [
        (rgb(BLUE), rgb(RED)),
        (rgb(RED), rgb(BLUE)),
    ]
    margins = [base | {"margin": -0.5}, base | {"margin": 0}]
    assert colors(read_pairs(write_rows(folder, margins))) == [(rgb(BLUE), rgb(RED))]


def test_pick_a_pics_columns(folder):
    rows = [
        {"caption": "p", "jpg_0": "a.png", "jpg_1": "b.png", "label_0": label, "label_1": 1 - label}
        for label in (1, 0, 0.5)
    ]
    assert colors(read_pairs(write_rows(folder, rows))) == [
        (rgb(RED), rgb(BLUE)),
        (rgb(BLUE), rgb(RED)),
    ]


def test_pick_a_pic_as_parquet(tmp_path):
    row = {"caption": "p", "jpg_0": picture(RED), "jpg_1": picture(BLUE), "label_0": 0.0}
    parquet.write_table(pyarrow.Table.from_pylist([row]), tmp_path / "pairs.parquet")
    assert colors(read_pairs(tmp_path / "pairs.parquet")) == [(rgb(BLUE), rgb(RED))]


def test_a_folder(tmp_path):
    for side, color in (("chosen", RED), ("rejected", BLUE)):
        (tmp_path / side).mkdir()
        (tmp_path / side / "one.png").write_bytes(picture(color))
    with pytest.raises(ValueError, match=r"one.png has no prompt; write it into .*one.txt"):
        read_pairs(tmp_path)
    (tmp_path / "one.txt").write_text("a circle\n")
    pairs = read_pairs(tmp_path)
    assert pairs[0].prompt == "a circle"
    assert colors(pairs) == [(rgb(RED), rgb(BLUE))]
    (tmp_path / "rejected/one.png").unlink()
    with pytest.raises(ValueError, match=r"one.png has no counterpart in"):
        read_pairs(tmp_path)
    assert colors(read_pairs(tmp_path, rejected=False)) == [(rgb(RED), None)]


def test_a_webdataset(tmp_path):
    file = tmp_path / "pairs.tar"
    members = {
        "0/k.chosen.png": picture(RED), "0/k.rejected.png": picture(BLUE), "0/k.txt": b"a circle",
    }  # fmt: skip
    with tarfile.open(file, "w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    pairs = read_pairs(file)
    assert pairs[0].prompt == "a circle"
    assert colors(pairs) == [(rgb(RED), rgb(BLUE))]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"prompt": "p", "chosen": "a.png"}, "has no column `rejected`; its columns are chosen"),
        ({"prompt": "p", "rejected": "a.png"}, "has no column `chosen`; its columns are rejected"),
        ({"prompt": "p", "chosen": "a.png", "rejected": "x.png"}, "there is no picture .*x.png"),
        ({"prompt": "p", "chosen": "", "rejected": "b.png"}, "pair 1, chosen: there is no picture"),
        ({"prompt": "p", "chosen": "a.png", "rejected": "a.png"}, "the same picture twice"),
        ({"prompt": "p", "chosen": "a.png", "rejected": "b.png", "margin": "x"}, "is no number"),
        ({"chosen": "a.png", "rejected": "b.png"}, "has no text under `prompt`"),
        ({"prompt": "p", "chosen": "a.png", "rejected": "b.png", "margin": 0}, "ties alone"),
    ],
)
def test_a_faulty_pair_is_told_in_one_sentence(folder, row, said):
    with pytest.raises(ValueError, match=said):
        read_pairs(write_rows(folder, [row]))


def test_pictures_that_are_none(folder):
    (folder / "a.png").write_bytes(b"no picture")
    (folder / "b.png").write_bytes(picture(BLUE, (1, 1)))
    (pair,) = read_pairs(
        write_rows(folder, [{"prompt": "p", "chosen": "a.png", "rejected": "b.png"}])
    )
    with pytest.raises(ValueError, match=r"a.png cannot be read as a picture"):
        open_picture(pair.chosen)
    with pytest.raises(ValueError, match=r"b.png has 1x1 pixels; at least 2x2"):
        open_picture(pair.rejected)


def test_no_such_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no file or folder"):
        read_pairs(tmp_path / "missing.csv")
    (tmp_path / "pairs.doc").write_text("x")
    with pytest.raises(ValueError, match=r"ends in .doc; pairs are read from a folder"):
        read_pairs(tmp_path / "pairs.doc")
