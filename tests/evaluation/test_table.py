"""`scripts/bench/table.py` on a tiny budget: every row there, and every figure from the report."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch

from align.evaluation import summary
from align.models.load import load_pipeline
from align.models.lora import add_lora, save_lora
from tests.nar.align_helpers import randomize, run, tiny_pipe

SCRIPT = Path(__file__).parents[2] / "scripts/bench/table.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("bench_table", SCRIPT)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    assert spec.loader is not None
    spec.loader.exec_module(module)
    return module


def nar_of_64_pixels(folder):
    """An untrained NAR model whose pictures the verifier can look at, and an alignment of it."""
    pipe = tiny_pipe(grid_shape=(2, 2), image_size=(64, 64))
    pipe.save_pretrained(folder / "model")
    small = {"steps": 1, "group_size": 2, "batch_size": 4}
    result, _ = run(folder, pipe=pipe, model=str(folder / "model"), **small)
    return folder / "model", result.out


def test_the_table_has_every_row(script, tmp_path, monkeypatch):
    torch.set_num_threads(1)
    few = summary.training_pictures(20)
    monkeypatch.setattr(summary, "training_pictures", lambda: few)
    model, aligned = nar_of_64_pixels(tmp_path / "nar")
    pipe = load_pipeline("embedded/scenes", device="cpu")
    add_lora(pipe, 2)
    randomize(pipe, 0.01)
    save_lora(pipe, tmp_path / "lora")
    (tmp_path / "prompts.csv").write_text("prompt,category\na red circle,single\n")
    arguments = [
        "--lora", str(tmp_path / "lora"), "--nar-lora", str(aligned), "--nar", str(model),
        "--prompts", str(tmp_path / "prompts.csv"), "--budget", "16nfe", "--reward", "scenes-clip",
        "--num-inference-steps", "1", "--device", "cpu", "--out", str(tmp_path / "table"),
    ]  # fmt: skip
    text = script.main(arguments)
    lines = text.splitlines()
    names = [line.split("|")[1].strip() for line in lines[2:]]
    assert names == [
        "base", "best of N", "noise search (CARINOX)", "LoRA (AlignProp)", "LoRA + best of N",
        "LoRA + noise search", "NAR", "NAR + best of N", "aligned NAR", "aligned NAR + best of N",
    ]  # fmt: skip
    rows = {name: line.split("|")[2:-1] for name, line in zip(names, lines[2:], strict=True)}
    report = json.loads((tmp_path / "table/report.json").read_text())
    spent = {one["method"]: one["spent"] for one in report["figures"]}
    # 16 passes buy 16 pictures of one step, and 5 of 3 wavefronts
    assert int(rows["best of N"][3]) == spent["bon"]["images"] == 16
    assert int(rows["NAR + best of N"][3]) == 5
    assert [int(rows[name][3]) for name in ("base", "NAR", "aligned NAR")] == [1, 1, 1]
    assert int(rows["LoRA + noise search"][5]) > 0  # backward passes
    for method, one in spent.items():
        if "carinox" not in method:
            assert one["generator_backwards"] == 0
    assert rows["base"][1].strip() == ""
    assert (tmp_path / "table/table.md").read_text() == text + "\n"
    # continued, it has nothing left to do and prints the same
    assert script.main(["--resume", "--out", str(tmp_path / "table")]) == text


def test_rows_without_loras(script):
    names = script.rows(None, None, "embedded/nar-scenes")
    assert next(iter(names.values())) == "base"
    assert not any("lora" in method for method in names.values())
