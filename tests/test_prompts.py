"""Prompt files, built-in sets, the seeded draw."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

import align
from align.prompts import (
    builtin_names,
    default_prompts,
    draw_prompts,
    load_prompts,
)


@pytest.mark.parametrize(
    ("name", "text", "metadata"),
    [
        ("a.txt", "\ufeffa red circle\r\n\n  two green stars \n", [{}, {}]),
        (
            "a.csv",
            'prompt,class\n"a red circle",1\ntwo green stars,"x,y"\n',
            [{"class": "1"}, {"class": "x,y"}],
        ),
        (
            "a.jsonl",
            '{"prompt": "a red circle", "n": [1]}\n\n{"prompt": "two green stars"}\n',
            [{"n": [1]}, {}],
        ),
    ],
)
def test_files(tmp_path, name, text, metadata):
    (tmp_path / name).write_text(text, encoding="utf-8", newline="")
    read = load_prompts(tmp_path / name)
    assert read.prompts == ["a red circle", "two green stars"]
    assert read.metadata == metadata
    assert len(read) == 2


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.txt", b"", "has no prompts"),
        ("a.txt", b" \n\n", "has no prompts"),
        ("a.csv", b"", "has no prompts"),
        ("a.txt", b"a red c\xffrcle", r"is not UTF-8 \(byte 7\)"),
        ("a.csv", b"text\nx\n", "no column `prompt`; its columns are text"),
        ("a.csv", b"prompt,n\nx,1\n,2\n", "line 3: no prompt"),
        ("a.csv", b"prompt\nx,1\n", "line 2: more columns"),
        ("a.jsonl", b'{"prompt": "x"}\n{"prompt"\n', "line 2 is not JSON"),
        ("a.jsonl", b'{"text": "x"}\n', "line 1 has no text under `prompt`"),
        ("a.jsonl", b'"x"\n', "line 1 has no text under `prompt`"),
    ],
)
def test_broken_files(tmp_path, name, data, message):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ValueError, match=message):
        load_prompts(tmp_path / name)


def test_unknown_names():
    with pytest.raises(FileNotFoundError, match=r"no prompt file none\.txt"):
        load_prompts("none.txt")
    with pytest.raises(ValueError, match="did you mean scenes-heldout-b or scenes-heldout-a"):
        load_prompts("scenes-heldout")


def test_builtin_sets():
    assert len(load_prompts("animals")) == 45
    everything = load_prompts("scenes")
    assert {entry["category"] for entry in everything.metadata} == {
        name.removeprefix("scenes-")
        for name in builtin_names()
        if "-" in name and "held" not in name
    }
    for name in ("scenes", "scenes-heldout-a", "scenes-heldout-b"):
        heldout = [align.scenes.is_heldout(prompt) for prompt in load_prompts(name).prompts]
        assert all(heldout) if "heldout" in name else not any(heldout)
    assert set(load_prompts("scenes-numeracy").prompts) <= set(everything.prompts)


def test_default_set():
    assert default_prompts("embedded/scenes") == "scenes"
    with pytest.raises(ValueError, match="--prompts is needed with some/model"):
        default_prompts("some/model")


@given(st.integers(1, 50), st.integers(0, 99), st.integers(0, 99), st.integers(1, 64), st.data())
def test_draw_is_the_same_however_the_batch_is_split(count, seed, update, batch, data):
    whole = draw_prompts(count, seed=seed, update=update, indices=range(batch))
    cut = data.draw(st.integers(0, batch))
    parts = [range(cut), range(cut, batch)]
    split = [draw_prompts(count, seed=seed, update=update, indices=part) for part in parts]
    assert split[0] + split[1] == whole
    assert all(0 <= index < count for index in whole)
    assert len(set(whole)) == min(count, batch)


def test_draws_differ_between_updates_and_seeds():
    draws = {
        tuple(draw_prompts(40, seed=seed, update=update, indices=range(8)))
        for seed in range(3)
        for update in range(5)
    }
    assert len(draws) == 15
