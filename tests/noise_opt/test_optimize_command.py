"""`align optimize`: the run's folder, resuming, several processes, bad input."""

import json
import signal
import subprocess
import sys
import time

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tiny import build

from align.cli import main
from align.noise_opt.weights import weigh
from align.rewards import load_reward
from align.runs.folder import read_metrics

REWARDS = """
import os, time, torch
def bright(images, prompts):
    if os.environ.get("SLOW_REWARD"):
        time.sleep(0.2)
    weights = torch.linspace(-1, 2, images[0].numel(), dtype=images.dtype).view(images[0].shape)
    return 10 * (images.sin() * weights).flatten(1).mean(1)
"""
PROMPTS = ["a dog", "two cats", "a red cup", "a dog"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a one-step model, a reward and a file of prompts."""
    folder = tmp_path_factory.mktemp("optimize")
    build("sd-turbo").save_pretrained(folder / "tiny-turbo")
    (folder / "rewards.py").write_text(REWARDS)
    (folder / "prompts.txt").write_text("\n".join(PROMPTS))
    return folder


def arguments(place, out, *more):
    named = ["--model", place / "tiny-turbo", "--reward", f"{place}/rewards.py:bright"]
    return [str(word) for word in ("optimize", *named, "--out", out, *more)]


def results(run):
    """What must not depend on how the run went: pictures and noises of every prompt."""
    found = {}
    for folder in sorted((run / "prompts").iterdir()):
        with Image.open(folder / "best.png") as image:
            pixels = image.tobytes()
        noise = load_file(folder / "noise.safetensors")["noise"]
        found[folder.name] = (pixels, noise.numpy().tobytes(), noise.shape)
    return found


def test_a_run_and_its_noise(place, tmp_path):
    out = tmp_path / "run"
    more = ["a dog", "--method", "carinox", "--budget", "24nfe", "--best", "2", "--seed", "5"]
    assert main(arguments(place, out, *more, "--render-steps", "3")) == 0
    folder = out / "prompts" / "0000"
    names = {path.name for path in folder.iterdir()}
    assert names >= {"best.png", "initial.png", "noise.safetensors", "history.jsonl", "best-2.png",
                     "noise-2.safetensors", "curves.png", "path.png", "render.png",
                     "result.json"}  # fmt: skip
    rows = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    assert [row["iteration"] for row in rows] == list(range(len(rows)))
    cost = json.loads((out / "costs.json").read_text())["backward_cost"]
    last = rows[-1]
    assert last["generator_forwards"] + cost * last["generator_backwards"] <= 24
    assert {row["phase"] for row in rows} == {"explore", "optimize"}
    assert last["best_total"] == max(row["best_total"] for row in rows)
    (metric,) = read_metrics(out)
    assert metric["best_total"] == last["best_total"] > metric["initial_total"]
    noise = load_file(folder / "noise.safetensors")["noise"]
    assert noise.dtype == torch.float32
    assert noise.shape == (1, 4, 8, 8)

    drawn = tmp_path / "drawn"
    generated = ["generate", "a dog", "--model", str(place / "tiny-turbo"), "--seed", "5"]
    for name, extra in (("best.png", ["--noise", str(folder / "noise.safetensors")]),
                        ("initial.png", [])):  # fmt: skip
        assert main([*generated, *extra, "--out", str(drawn), "--overwrite"]) == 0
        with Image.open(drawn / "images/0000.png") as one, Image.open(folder / name) as other:
            assert one.tobytes() == other.tobytes()
            assert other.text["seed"] == "5"


def test_a_killed_run_goes_on_in_two_processes(place, tmp_path, monkeypatch):
    """Every prompt comes once, and the results are those of a run that nobody disturbed."""
    settings = ["--prompts", place / "prompts.txt", "--method", "reno", "--iterations", "4"]
    whole, out = tmp_path / "whole", tmp_path / "run"
    assert main(arguments(place, whole, *settings)) == 0

    monkeypatch.setenv("SLOW_REWARD", "1")
    command = [sys.executable, "-m", "align", *arguments(place, out, *settings)]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as first:
        while not (out / "prompts/0001/noise.safetensors").exists():
            assert first.poll() is None
            time.sleep(0.05)
        first.send_signal(signal.SIGKILL)
    assert load_file(out / "prompts/0001/noise.safetensors")  # the best so far is on the disk
    assert not (out / "prompts/0001/result.json").exists()

    again = [*arguments(place, out, *settings), "--resume", str(out)]
    with subprocess.Popen([sys.executable, "-m", "align", *again]) as second:
        while not (out / "prompts/0002").exists():
            assert second.poll() is None
            time.sleep(0.05)
        assert main(again) == 0
        assert second.wait() == 0
    assert results(out) == results(whole)
    assert sorted(row["index"] for row in read_metrics(out)) == [0, 1, 2, 3]
    assert results(out)["0000"] != results(out)["0003"]  # the same prompt, other seeds
    assert json.loads((out / "report.json").read_text())["prompts"] == 4

    monkeypatch.delenv("SLOW_REWARD")
    before = read_metrics(out)
    assert main(["optimize", "--resume", str(out)]) == 0  # all is done
    assert read_metrics(out) == before


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ([], "there is no prompt"),
        (["a", "--budget", "5parsecs"], "budget is '5parsecs'"),
        (["a", "--method", "carinx"], "carinox"),
        (["a", "--weights", "missing.json"], "no weights table missing.json"),
        (["a", "--category", "colour"], "category is 'colour'"),
        (["--prompts", "missing.txt"], "no prompt file missing.txt"),
        (["a", "--budget", "2nfe", "--num-inference-steps", "3"], "one image takes 3 nfe"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(place, tmp_path, capsys, more, message):
    assert main(arguments(place, tmp_path / "run", *more)) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert message in error
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "words\na dog\n", "no column `prompt`"),
        ("a.jsonl", '{"prompt": "a"}\n{"prompt": ""}\n', "line 2 has no text under `prompt`"),
        ("a.txt", "\n\n", "has no prompts"),
    ],
)
def test_bad_rows_are_named(place, tmp_path, capsys, name, content, message):
    (tmp_path / name).write_text(content)
    assert main(arguments(place, tmp_path / "run", "--prompts", tmp_path / name)) == 2
    assert message in capsys.readouterr().err


def test_other_settings_do_not_resume_a_run(place, tmp_path, capsys):
    out = tmp_path / "run"
    few = ["a dog", "--method", "bon", "--seeds", "2"]
    assert main(arguments(place, out, *few)) == 0
    assert main([*arguments(place, out, *few[:3], "--seeds", "3"), "--resume", str(out)]) == 2
    assert "seeds is 3, but the run" in capsys.readouterr().err
    assert main([*arguments(place, out, "a cat", *few[1:]), "--resume", str(out)]) == 2
    assert "is of the prompt 'a dog', not 'a cat'" in capsys.readouterr().err
    assert main(arguments(place, out, *few)) == 2
    assert "exists and is not empty" in capsys.readouterr().err


def test_explain_says_category_weights_and_why(capsys):
    assert main(["optimize", "two green stars", "zorp", "--explain"]) == 0
    text = capsys.readouterr().out
    assert "category: numeracy 100% (it is a prompt of the scenes grammar)" in text
    assert "category: unknown (none of the rules reads it)" in text
    assert "100% uniform" in text
    assert "scenes-detector" in text


def test_weights_come_from_category_and_table(tmp_path):
    rows = {
        "color": {"scenes-clip": 0.6, "scenes-vqa": 0.2},
        "numeracy": {"scenes-clip": -0.1, "scenes-vqa": 0.4},
    }
    categories = {
        name: {"correlations": {k: {"spearman": v} for k, v in row.items()}}
        for name, row in rows.items()
    }
    stored = {"scenes-clip": {"mean": 2.0, "std": 0.5}, "scenes-vqa": {"mean": -1.0, "std": 2.0}}
    path = tmp_path / "table.json"
    path.write_text(json.dumps({"categories": categories, "statistics": stored}))
    reward = load_reward("scenes-clip=3,scenes-vqa")

    def weights(prompt, table=str(path), category=None):
        return {p.name: p.weight for p in weigh(reward, prompt, table, category).objective.parts}

    # The table's 1.5 and 0.5 times the expression's 3 and 1.
    assert weights("a red circle and a blue square") == pytest.approx(
        {"scenes-clip": 3 * 1.5, "scenes-vqa": 0.5}
    )
    assert weights("two green stars") == pytest.approx({"scenes-clip": 0.0, "scenes-vqa": 2.0})
    assert weights("two green stars", category="color")["scenes-vqa"] == pytest.approx(0.5)
    assert weights("zorp") == {"scenes-clip": 3, "scenes-vqa": 1}
    assert weights("two green stars", "uniform") == {"scenes-clip": 3, "scenes-vqa": 1}
    objective = weigh(reward, "zorp", str(path)).objective
    terms = {"scenes-clip": torch.tensor([2.5]), "scenes-vqa": torch.tensor([-3.0])}
    assert objective.total(terms).item() == pytest.approx(3 * 1.0 - 1.0)
    assert weigh(reward, "zorp", "uniform").objective.total(terms).item() == pytest.approx(4.5)
    mixed = load_reward("min(scenes-clip,scenes-vqa),scenes-clip")
    assert {p.weight for p in weigh(mixed, "two green stars", "category").objective.parts} == {1}
