"""Prompt files, built-in sets, the seeded draw."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

import align
from align.evaluation.benchmarks import load_benchmark
from align.language.prompts import (
    builtin_names,
    default_prompts,
    draw_prompts,
    load_prompts,
)

PROMPTS = ["a red circle", "two green stars"]
SEPARATED = "a cat\u2028on\u0085a\x0cmat\x1cby\u2029the sea"


@pytest.mark.parametrize("suffix_case", [str.lower, str.upper])
@pytest.mark.parametrize(
    ("name", "text", "metadata"),
    [
        ("a.txt", "\ufeffa red circle\r\n\n  two green stars \n", [{}, {}]),
        ("a.txt", "a red circle\rtwo green stars\r", [{}, {}]),
        (
            "a.csv",
            'prompt,class\n"a red circle",1\ntwo green stars,"x,y"\n',
            [{"class": "1"}, {"class": "x,y"}],
        ),
        (
            "a.csv",
            "Style , PROMPT,\r\nx, a red circle,\r\n,,\r\ny,two green stars,,\r\n",
            [{"Style": "x"}, {"Style": "y"}],
        ),
        (
            "a.csv",
            "sep=;\nprompt;n\na red circle;1,5\ntwo green stars;2\n",
            [{"n": "1,5"}, {"n": "2"}],
        ),
        ("a.csv", "Prompt;n\na red circle;1\ntwo green stars;2\n", [{"n": "1"}, {"n": "2"}]),
        (
            "a.tsv",
            'Prompt\tCategory\na red circle\t"bond\ntwo green stars\tab"s\n',
            [{"Category": '"bond'}, {"Category": 'ab"s'}],
        ),
        (
            "a.tsv",
            'Prompt\tCategory\n"a red circle"\tx\ntwo green stars\t"say ""y"""\n',
            [{"Category": "x"}, {"Category": 'say "y"'}],
        ),
        (
            "a.jsonl",
            '{"prompt": "a red circle", "n": [1]}\n\n{"prompt": "two green stars"}\n',
            [{"n": [1]}, {}],
        ),
        ("a.jsonl", '[\n"a red circle",\n"two green stars"\n]', [{}, {}]),
        ("a.json", '[\n  "a red circle",\n  "two green stars"\n]\n', [{}, {}]),
        (
            "a.json",
            '[{"Prompt": "a red circle", "ID": 1}, {"Prompt": "two green stars"}]',
            [{"ID": 1}, {}],
        ),
        ("a.json", '{"0": {"text": "a red circle"}, "1": {"text": "two green stars"}}', [{}, {}]),
        ("a.json", '{"prompts": ["a red circle", "two green stars"], "version": 2}', [{}, {}]),
        (
            "a.json",
            '{"caption": ["a red circle", "two green stars"], "n": [1, 2]}',
            [{"n": 1}, {"n": 2}],
        ),
        (
            "a.json",
            '{"one": ["a red circle"], "two": ["two green stars"]}',
            [{"category": "one"}, {"category": "two"}],
        ),
        ("a.json", '{"prompt": "a red circle"}\n{"prompt": "two green stars"}\n', [{}, {}]),
    ],
)
def test_files(tmp_path, name, text, metadata, suffix_case):
    file = tmp_path / suffix_case(name)
    file.write_text(text, encoding="utf-8", newline="")
    read = load_prompts(file)
    assert read.prompts == PROMPTS
    assert read.metadata == metadata
    assert len(read) == 2
    judged = load_benchmark(str(file))
    assert judged.prompts == PROMPTS  # evaluations read what generation reads


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.txt", f"{SEPARATED}\n"),
        ("a.csv", f"prompt,k\n{SEPARATED},1\n"),
        ("a.tsv", f"prompt\tk\n{SEPARATED}\t1\n"),
        ("a.jsonl", json.dumps({"prompt": SEPARATED}, ensure_ascii=False) + "\n"),
        ("a.jsonl", '{"prompt": "' + SEPARATED.replace("\x0c", " ").replace("\x1c", " ") + '"}'),
    ],
)
def test_separators_of_unicode_are_text(tmp_path, name, text):
    (tmp_path / name).write_text(text, encoding="utf-8", newline="")
    for read in (load_prompts(tmp_path / name), load_benchmark(str(tmp_path / name))):
        assert len(read) == 1
        assert read.prompts[0].replace(" ", "") in (
            SEPARATED.replace(" ", ""),
            SEPARATED.replace("\x0c", "").replace("\x1c", "").replace(" ", ""),
        )


def test_unicode_text_of_a_spreadsheet(tmp_path):
    (tmp_path / "a.tsv").write_bytes("prompt\tn\r\nein Stück\t1\r\n".encode("utf-16"))
    assert load_prompts(tmp_path / "a.tsv").prompts == ["ein Stück"]


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.txt", b"", "has no prompts"),
        ("a.txt", b" \n\n", "has no prompts"),
        ("a.csv", b"", "has no prompts"),
        ("a.json", b"", "has no prompts"),
        ("a.txt", b"a red c\xffrcle", r"a.txt, line 1, is not UTF-8 \(byte 7\)"),
        ("a.txt", b"one\ntwo\ncaf\xe9\n", r"a.txt, line 3, is not UTF-8 \(byte 11\)"),
        ("a.csv", b"words\nx\n", "no column `prompt`; its columns are words"),
        ("a.csv", b"prompt,n\nx,1\n,2\n", "line 3: no prompt"),
        ("a.csv", b"prompt\nx,1\n", "line 2: more columns than its header.* comma .*quotes"),
        ("a.csv", b'prompt\nx\n"a cat\na dog\n', r"a.csv, line 3 is no row of a table"),
        ("a.jsonl", b'{"prompt": "x"}\n{"prompt"\n', "line 2 is not JSON"),
        ("a.jsonl", b'{"words": "x"}\n', "line 1 has no text under `prompt`"),
        ("a.jsonl", b'{"prompt": "x"}\n7\n', "line 2 has no text under `prompt`"),
        ("a.json", b"{", "prompt file .*a.json is not JSON"),
        ("a.json", b'["x", {"n": 1}]', "row 2 of .*a.json has no text under `prompt`"),
        ("a.json", b"3", "no JSON list of prompts"),
        ("a.json", b'{"prompt": ["x", "y"], "n": [1]}', "2 entries under 'prompt', but 1 "),
        ("a.yaml", b"- a red circle\n", r"ends in \.yaml; known are \.txt, \.csv"),
        ("a.parquet", b"PAR1", r"ends in \.parquet; known are"),
    ],
)
def test_broken_files(tmp_path, name, data, message):
    (tmp_path / name).write_bytes(data)
    for read in (load_prompts, lambda path: load_benchmark(str(path))):
        with pytest.raises(ValueError, match=message):
            read(tmp_path / name)


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
