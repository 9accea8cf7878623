"""The Align tab's handlers and the demo's folders: a training as a process of its own."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import gradio as gr
import pytest
from safetensors.torch import load_file

from align.demo import align_handler, choices, folders, training

DEADLINE = 600  # seconds for what takes ten on an idle machine


@pytest.fixture(autouse=True)
def runs(tmp_path, monkeypatch):
    """An empty runs folder, and no training left over."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(training, "_JOB", None)
    yield tmp_path / "runs"
    training.end()


def train(owner="me", **changes):
    sent = {
        "reward": "scenes-clip", "prompt_set": "own", "own_prompts": "a red circle\ntwo stars\n",
        "minutes": 5, "updates": 500, "learning_rate": 5e-4, "model": "embedded/scenes", "seed": 1,
    }  # fmt: skip
    assert set(changes) <= set(sent)
    return align_handler.make_train(False)(*(sent | changes).values(), owner)


def wait_for(holds):
    """The newest view, once it is as asked for."""
    deadline = time.monotonic() + DEADLINE
    while time.monotonic() < deadline:
        view = training.newest()
        if view is not None and holds(view):
            return view
        time.sleep(0.3)
    pytest.fail(f"never came: {view}, {(folders.NOTES / f'{view.folder.name}.log').read_text()}")


@pytest.mark.slow
def test_a_training_runs_beside_the_page_and_stop_saves_a_lora_that_others_see():
    status, *_, command = train()
    assert "Loading the model" in status
    assert command.startswith("align train ")
    assert "--preset taste" in command
    with pytest.raises(gr.Error, match="one at a time"):  # a second visitor
        train(owner="other")
    view = wait_for(lambda view: len(view.records) >= 1)
    assert view.running
    assert view.before is not None
    assert view.config["max_minutes"] == 5
    shown = align_handler.show(None)
    assert "Update" in shown[0]
    assert "<svg" in shown[1]
    with pytest.raises(gr.Error, match="Only the browser that started"):
        align_handler.stop("other")
    align_handler.stop("me")
    view = wait_for(lambda view: not view.running)
    assert view.lora is not None
    assert view.fault == ""
    assert load_file(view.lora)
    assert (folders.NOTES / f"{view.folder.name}.txt").read_text() == "a red circle\ntwo stars\n"
    again = align_handler.show(None)  # a page that is opened later
    assert re.search("(Done|Stopped) after", again[0])
    assert Path(again[6]["value"]).read_bytes() == view.lora.read_bytes()
    assert align_handler.show(again[-1]) == (gr.skip(),) * 8
    assert str(view.folder) in [value for _, value in choices.loras("embedded/scenes")]


STARTS = """
import time
from align.demo import align_handler
align_handler.make_train(False)(
    "scenes-clip", "own", "a red circle", 5, 500, 5e-4, "embedded/scenes", 1, "me")
time.sleep(600)
"""


@pytest.mark.slow
def test_a_training_is_saved_when_its_demo_is_killed(runs):
    demo = subprocess.Popen([sys.executable, "-c", STARTS])
    wait_for(lambda view: len(view.records) >= 1)
    demo.kill()
    demo.wait()
    deadline = time.monotonic() + DEADLINE
    while not list(runs.glob("demo/train-*/lora/pytorch_lora_weights.safetensors")):
        assert time.monotonic() < deadline
        time.sleep(0.3)
    (log,) = runs.glob("demo/notes/*.log")
    while "align: interrupted" not in log.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.3)


@pytest.mark.slow
def test_a_training_that_fails_says_why_in_a_line(monkeypatch):
    monkeypatch.setattr(training, "command", lambda *_: ["align", "train", "--reward", "nothing"])
    train()
    view = wait_for(lambda view: not view.running)
    assert "nothing" in view.fault
    status = align_handler.show(None)[0]
    assert "It failed" in status
    assert "Traceback" not in status


def test_without_a_training_the_page_says_what_to_do():
    status, *_, mark = align_handler.show(None)
    assert "No training yet" in status
    assert align_handler.show(mark) == (gr.skip(),) * 8
    with pytest.raises(gr.Error, match="No training is under way"):
        align_handler.stop("me")


BAD = [
    ({"reward": "verifier"}, "the reward is"),
    ({"reward": "evil.py:f"}, "the reward is"),
    ({"prompt_set": "/etc/passwd"}, "prompts is"),
    ({"own_prompts": " \n "}, "no prompt"),
    ({"own_prompts": None}, "no prompt"),
    ({"own_prompts": "a\n" * 201}, "201 prompts"),
    ({"own_prompts": "a" * 50_000}, "50000 characters"),
    ({"minutes": 31}, "must be from 0.1 to 30"),
    ({"minutes": float("inf")}, "minutes is inf"),
    ({"updates": 0}, "updates is 0"),
    ({"learning_rate": 1}, "learning rate is 1"),
    ({"model": "runwayml/stable-diffusion-v1-5"}, "the model is"),
    ({"seed": -1}, "seed is -1"),
]


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(("changes", "text"), BAD)
def test_bad_values_start_nothing(changes, text, runs):
    with pytest.raises(gr.Error) as caught:
        train(**changes)
    assert text.lower() in caught.value.message.lower()
    assert not caught.value.print_exception
    assert not runs.exists()


def made(name, size, when, noted=True):
    folder = folders.HOME / name
    folder.mkdir(parents=True)
    (folder / "weights").write_bytes(bytes(size))
    if noted:
        folders.NOTES.mkdir(exist_ok=True)
        (folders.NOTES / f"{name}.json").write_text(json.dumps({"made": when}))
        (folders.NOTES / f"{name}.log").write_text("")
    return folder


def test_clean_up_takes_the_oldest_of_the_demos_own_folders_only(monkeypatch, tmp_path):
    monkeypatch.setattr(folders, "QUOTA", 2500)
    foreign = made("mine", 9000, 0, noted=False)
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").write_bytes(bytes(5000))
    oldest, busy, old, new = (made(f"train-{i}", 1000, i) for i in range(4))
    (folders.HOME / "train-link").symlink_to(outside)
    (folders.NOTES / "train-link.json").write_text(json.dumps({"made": -1}))
    folders.clean_up(busy=[busy])
    assert not oldest.exists()
    assert not old.exists()
    assert busy.is_dir()
    assert new.is_dir()
    assert foreign.is_dir()
    assert (outside / "file").is_file()
    assert sorted(os.listdir(folders.NOTES)) == [
        "train-1.json", "train-1.log", "train-3.json", "train-3.log", "train-link.json",
    ]  # fmt: skip


def test_clean_up_keeps_to_a_number_of_folders(monkeypatch):
    monkeypatch.setattr(folders, "MOST", 2)
    kept = [made(f"train-{i}", 10, i) for i in range(4)]
    folders.clean_up()
    assert [folder.exists() for folder in kept] == [False, False, True, True]
