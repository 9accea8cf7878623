"""`align quickstart`: how much it does, its folder, and a small run of it on the shipped models."""

import dataclasses
import shlex
from html import unescape

import pytest
import torch
from PIL import Image

from align.cli import main
from align.commands import quickstart as q
from align.config.commands import QuickstartConfig
from align.language.prompts import load_prompts
from align.models.load import EMBEDDED


def test_a_fast_machine_does_all_of_it():
    assert q.work(QuickstartConfig(), 0.01) == (q.TRAINING.steps, q.COMPARISON.per_category)


def test_a_slow_machine_does_less_of_each_part_and_never_next_to_nothing():
    whole = q.TRAINING.steps * q.PICTURES_AN_UPDATE
    whole += q.CATEGORIES * q.COMPARISON.per_category * q.PICTURES_A_PROMPT
    just = 5 * 60 / whole  # seconds a picture with which all fits into five minutes
    assert q.work(QuickstartConfig(), 0.999 * just) == (q.TRAINING.steps, q.COMPARISON.per_category)
    updates, prompts = q.work(QuickstartConfig(), just / 0.7)
    assert updates == int(0.7 * q.TRAINING.steps)
    assert prompts == int(0.7 * q.COMPARISON.per_category)
    assert q.work(QuickstartConfig(), 1000.0) == (q.LEAST_UPDATES, q.LEAST_PER_CATEGORY)
    assert q.work(QuickstartConfig(minutes=0.01), 1.0) == (q.LEAST_UPDATES, q.LEAST_PER_CATEGORY)


def test_the_compared_prompts_are_unseen_and_of_all_categories():
    compared = load_prompts(q.COMPARISON.prompts)
    assert not set(compared.prompts) & set(load_prompts("scenes").prompts)
    assert len({one["category"] for one in compared.metadata}) == q.CATEGORIES


@pytest.fixture
def small(monkeypatch, tmp_path):
    """A quickstart of a few pictures and updates in an empty folder."""
    if not (EMBEDDED / "scenes" / "model_index.json").is_file():
        pytest.skip("embedded/scenes is not in this tree")
    training = dataclasses.replace(q.TRAINING, steps=2, batch_size=2, num_inference_steps=2)
    comparison = dataclasses.replace(
        q.COMPARISON, per_category=1, budget="3images", num_inference_steps=2
    )
    monkeypatch.setattr(q, "TRAINING", training)
    monkeypatch.setattr(q, "COMPARISON", comparison)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_small_run_of_the_whole_and_a_second_one(small, capsys):
    assert main(["quickstart"]) == 0
    printed = capsys.readouterr().out
    folder = small / "runs" / "quickstart"
    page = (folder / "report.html").read_text(encoding="utf-8")
    methods = q.methods(folder)
    assert "runs/quickstart/report.html" in printed
    assert "the mean radius of objects went from" in printed
    assert "9 prompts that it never saw" in printed
    assert page.count("data:image/png") == 9 * (2 + len(methods))
    assert 'src="http' not in page
    assert 'href="http' not in page
    assert (folder / "train" / "lora" / "pytorch_lora_weights.safetensors").is_file()
    assert (folder / "compare" / "report.json").is_file()

    line = unescape(page).split("# The same with it\n")[1].splitlines()[0]
    assert main([*shlex.split(line)[1:], "--out", "again"]) == 0  # the quoted command
    with (
        Image.open(folder / "compare" / "images" / "0000-1-0-0.png") as told,
        Image.open("again/images/0000.png") as made,
    ):
        difference = torch.frombuffer(bytearray(told.tobytes()), dtype=torch.uint8).int()
        difference -= torch.frombuffer(bytearray(made.tobytes()), dtype=torch.uint8).int()
        assert difference.abs().max() <= 1  # batches round differently

    (folder / "mine.txt").write_text("keep me")
    q.open_folder(QuickstartConfig())  # what a second run begins with
    kept = [path for path in (small / "runs").glob("quickstart-*") if path.is_dir()]
    assert [(path / "mine.txt").read_text() for path in kept] == ["keep me"]
    assert sorted(path.name for path in folder.iterdir()) == ["run.json"]


def test_a_given_folder_is_not_replaced_unasked(small):
    (small / "mine").mkdir()
    (small / "mine" / "a.txt").write_text("keep me")
    assert main(["quickstart", "--out", "mine"]) == 2
    assert (small / "mine" / "a.txt").read_text() == "keep me"
