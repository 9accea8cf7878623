"""`align quickstart`: its statistics, its folder, and a small run of it on the shipped model."""

import dataclasses
import shlex
from html import unescape

import pytest
import torch
from PIL import Image

from align import quickstart as q
from align import quickstart_parts, quickstart_report
from align.cli import main
from align.config import QuickstartConfig
from align.models import EMBEDDED
from align.run import read_metrics


def judgments(before, after, pictures=1):
    """One judgment a score, `pictures` successive ones of the same prompt."""
    return [
        q.Judgment(f"p{i // pictures}", "single", i % pictures, {"exact": b}, {"exact": a})
        for i, (b, a) in enumerate(zip(before, after, strict=True))
    ]


def test_a_gain_is_the_paired_mean_difference():
    gain = q.gain(judgments([0, 0, 1, 1], [1, 0, 1, 1], pictures=2), "exact")
    assert (gain.before, gain.after, gain.difference) == (0.5, 0.75, 0.25)
    assert (gain.prompts, gain.images) == (2, 4)
    # Student's with 1 degree of freedom and an error of 0.25, inside what a difference can be
    assert (gain.low, gain.high) == (-1, 1)


def test_the_interval_is_that_of_the_mean_over_prompts():
    torch.manual_seed(0)
    rises = torch.randn(200, dtype=torch.float64)
    gain = q.gain(judgments([0.0] * 200, rises.tolist()), "exact")
    error = 1.96 * rises.std().item() / 200**0.5
    assert gain.low == pytest.approx(rises.mean().item() - error, abs=0.1 * error)
    assert gain.high == pytest.approx(rises.mean().item() + error, abs=0.1 * error)


def test_pictures_of_one_prompt_do_not_count_as_independent():
    rises = torch.randn(20, generator=torch.Generator().manual_seed(1)).tolist()
    once = q.gain(judgments([0.0] * 20, rises), "exact")
    copied = [rise for rise in rises for _ in range(8)]
    again = q.gain(judgments([0.0] * 160, copied, pictures=8), "exact")
    assert again.high - again.low == pytest.approx(once.high - once.low)


@pytest.mark.parametrize(
    ("after", "text"),
    [([1.0] * 30, "rose from"), ([-1.0] * 30, "fell from"), ([0.0] * 30, "told from chance")],
)
def test_the_headline_says_which_way_it_went(after, text):
    gain = q.gain(judgments([0.0] * 30, after), "exact")
    outcome = dataclasses.replace(EMPTY, gains={"exact": gain}, seconds={"training": 60.0})
    line = quickstart_report.headline(outcome)
    assert text in line
    assert f"{100 * after[0]:+.1f} points" in line
    assert "n = 30 prompts" in line


EMPTY = q.Outcome(
    folder=q.OUT,
    training=q.TRAINING,
    updates=0,
    records=[],
    judgments=[],
    images={},
    gains={},
    searched=[],
    searched_images={},
    searched_gains={},
    nar=None,
    seconds={},
)


def test_the_judged_prompts_are_unseen_and_their_noises_fixed():
    from align.prompts import load_prompts

    prompts, categories, seeds = q.judged_prompts(0)
    assert not set(prompts) & set(load_prompts(q.TRAINING.prompts).prompts)
    assert len(prompts) == len(set(zip(prompts, seeds, strict=True)))
    assert set(seeds) == {q.FIRST_SEED + i for i in range(q.NOISES)}
    counts = {c: categories.count(c) for c in categories}
    assert max(counts.values()) == q.JUDGED_PER_CATEGORY * q.NOISES


@pytest.fixture
def small(monkeypatch, tmp_path):
    """A quickstart of a few pictures and updates in an empty folder."""
    if not (EMBEDDED / "scenes" / "model_index.json").is_file():
        pytest.skip("embedded/scenes is not in this tree")
    training = dataclasses.replace(q.TRAINING, steps=2, batch_size=2, num_inference_steps=2)
    monkeypatch.setattr(q, "TRAINING", training)
    monkeypatch.setattr(q, "JUDGED_PER_CATEGORY", 1)
    monkeypatch.setattr(q, "NOISES", 1)
    monkeypatch.setattr(q, "SEARCHED_PER_CATEGORY", 1)
    search = dataclasses.replace(quickstart_parts.SEARCH, budget="2images", num_inference_steps=2)
    monkeypatch.setattr(quickstart_parts, "SEARCH", search)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_small_run_of_the_whole_and_a_second_one(small, capsys):
    assert main(["quickstart"]) == 0
    printed = capsys.readouterr().out
    folder = small / "runs" / "quickstart"
    page = (folder / "report.html").read_text(encoding="utf-8")
    count = len(q.judged_prompts(0)[0])
    nar = (EMBEDDED / "nar-scenes" / "model_index.json").is_file()
    assert ("256 tokens a picture in 31 passes: 9 pictures" in printed) == nar
    assert "n = 9 prompts, 9 pictures" in printed
    assert "verifier: exactly as asked" in printed
    assert f"n = {count} prompts, {count} pictures" in printed
    assert "runs/quickstart/report.html" in printed
    assert page.count("data:image/png") == 2 * count + 2 * 9 + (9 if nar else 0)
    assert 'src="http' not in page
    assert 'href="http' not in page
    assert len(read_metrics(folder)) == count
    assert (folder / "train" / "lora" / "pytorch_lora_weights.safetensors").is_file()
    assert len(list((folder / "images").glob("*.png"))) == 2 * count

    line = unescape(page).split("# The same with it\n")[1].splitlines()[0]
    assert main([*shlex.split(line)[1:], "--out", "again"]) == 0  # the quoted command
    with (
        Image.open(folder / "images" / "single-1-after.png") as told,
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


def test_a_busy_machine_trains_less_but_never_next_to_nothing(small, monkeypatch):
    training = dataclasses.replace(q.TRAINING, steps=6)
    monkeypatch.setattr(q, "TRAINING", training)
    monkeypatch.setattr(quickstart_parts, "EMBEDDED", small)  # without NAR
    assert q.run(QuickstartConfig(minutes=0.3)).updates == 3  # the time was over before the first
    assert [q.least_updates(minutes) for minutes in (0.01, 0.2, 60)] == [1, 2, 6]


def test_a_given_folder_is_not_replaced_unasked(small):
    (small / "mine").mkdir()
    (small / "mine" / "a.txt").write_text("keep me")
    assert main(["quickstart", "--out", "mine"]) == 2
    assert (small / "mine" / "a.txt").read_text() == "keep me"
