"""`scripts/bench/readme.py`: README's table and pictures are those of a run's report."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageColor

from align.commands.compare import compare
from align.config.evaluate import CompareConfig
from align.evaluation import summary

SCRIPT = Path(__file__).parents[2] / "scripts/bench/readme.py"
README = "before\n<!-- table -->\nold\n<!-- end -->\nafter\n"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("bench_readme", SCRIPT)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    assert spec.loader is not None
    spec.loader.exec_module(module)
    return module


def run_script(script, monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["readme.py", *map(str, arguments)])
    script.main()


def test_the_table_and_the_pictures_are_the_reports(script, tmp_path, monkeypatch):
    torch.set_num_threads(1)
    few = summary.training_pictures(20)
    monkeypatch.setattr(summary, "training_pictures", lambda: few)
    prompts = tmp_path / "prompts.csv"
    prompts.write_text("prompt,category\na red circle,single\ntwo green stars,numeracy\n")
    run = tmp_path / "run"
    config = CompareConfig(
        model="embedded/scenes-turbo", prompts=str(prompts), methods="base,bon", budget="3nfe",
        reward="scenes-clip", num_inference_steps=1, judge="verifier", device="cpu", out=str(run),
    )  # fmt: skip
    compare(config)
    readme, sheet = tmp_path / "README.md", tmp_path / "sheet.png"
    readme.write_text(README)
    run_script(script, monkeypatch, run, "--pictures", run, "--readme", readme, "--image", sheet)
    lines = readme.read_text().splitlines()
    assert lines[0] == "before"
    assert lines[-1] == "after"
    report = json.loads((run / "report.json").read_text())
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines[4:-2]]
    assert [row[:3] for row in rows] == [
        ["scenes-turbo", "base", "1"],
        ["scenes-turbo", "bon", "3"],
    ]
    for row, one in zip(rows, report["figures"], strict=True):
        assert row[3].startswith(f"{100 * one['overall']['exact']['mean']:.0f} %")
        assert row[5] == f"{one['spent']['cpu_seconds']:.1f}"
    with Image.open(sheet) as opened:
        side = script.SIDE + 2 * script.FRAME
        assert opened.size == (2 * side, 2 * side)  # two categories, before and after
        exact = json.loads((run / "prompts/0000.json").read_text())["results"][0]["scores"]["exact"]
        frame = ImageColor.getrgb(script.COLORS[exact == 1])
        assert opened.getpixel((0, 0)) == frame


def test_a_readme_without_the_marks_is_refused(script, tmp_path, monkeypatch):
    readme = tmp_path / "README.md"
    readme.write_text("no table\n")
    with pytest.raises(SystemExit, match="has no <!-- table -->"):
        run_script(script, monkeypatch, tmp_path, "--readme", readme)
    assert readme.read_text() == "no table\n"
