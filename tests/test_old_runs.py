"""Runs of commit d6ba49c (`fixtures/d6ba49c/README.md`): they resume, repeat, load."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny import build

import align
from align.cli import main
from align.nar.load import load_nar_pipeline
from align.runs.folder import read_metrics

OLD = Path(__file__).parent / "fixtures" / "d6ba49c"
LORA = "lora/pytorch_lora_weights.safetensors"
WEIGHTS = "pipeline/transformer/diffusion_pytorch_model.safetensors"


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A copy of the old runs as the present folder, with the model that they were made with."""
    folder = tmp_path / "old"
    shutil.copytree(OLD, folder)
    build("sd").save_pretrained(folder / "tiny-sd")
    monkeypatch.chdir(folder)
    return folder


def same_records(folder, other):
    """Whether two runs of the same settings have gone the same way."""
    for one, two in zip(read_metrics(folder), read_metrics(other), strict=True):
        assert one["step"] == two["step"]
        for key in {"loss", "reward", "grad_norm"} & one.keys():
            assert one[key] == pytest.approx(two[key], rel=1e-3), key


def same_weights(file, other):
    one, two = load_file(file), load_file(other)
    assert one.keys() == two.keys()
    for key, value in one.items():  # Adam's first steps magnify rounding
        torch.testing.assert_close(value, two[key], rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("command", "run", "weights"),
    [(("train",), "train", LORA), (("nar", "train"), "nar", WEIGHTS)],
    ids=["lora", "nar"],
)
def test_an_interrupted_run_goes_on_to_the_end_of_one_that_was_not(here, command, run, weights):
    assert [record["step"] for record in read_metrics(Path(run))] == [1, 2]
    assert main([*command, "--resume", run]) == 0
    same_records(Path(run), Path(f"{run}-whole"))
    same_weights(f"{run}/{weights}", f"{run}-whole/{weights}")


@pytest.mark.parametrize(
    ("command", "run", "weights"),
    [(("train",), "train-whole", LORA), (("nar", "train"), "nar-whole", WEIGHTS)],
    ids=["lora", "nar"],
)
def test_a_run_is_repeated_by_its_run_json(here, command, run, weights):
    assert main([*command, "--config", f"{run}/run.json", "--out", "again"]) == 0
    same_records(Path("again"), Path(run))
    same_weights(f"again/{weights}", f"{run}/{weights}")


def test_the_lora_changes_the_picture(here):
    pictures = [
        align.generate(align.load_pipeline("tiny-sd", lora=lora), "a red circle", seed=0)
        for lora in ((), ("train-whole=30",))
    ]
    assert (pictures[0] - pictures[1]).abs().max() > 0.01


def test_the_nar_pipeline_draws(here):
    """Its model_index.json names modules of the package."""
    pipe = load_nar_pipeline("nar-whole")
    weights = pipe.transformer.state_dict()
    for key, value in load_file(f"nar-whole/{WEIGHTS}").items():
        assert torch.equal(weights[key], value), key
    images = pipe(
        class_labels=[0], generator=torch.Generator().manual_seed(0), output_type="pt"
    ).images
    assert images.shape == (1, 3, 8, 8)


def test_a_search_goes_on_at_the_prompt_that_is_left(here):
    done = Path("optimize/prompts/0000/result.json").read_bytes()
    assert main(["optimize", "--resume", "optimize"]) == 0
    assert Path("optimize/prompts/0000/result.json").read_bytes() == done
    other = json.loads(Path("optimize/prompts/0001/result.json").read_text())
    assert other["prompt"] == "two green stars"
    assert other["best_total"] > other["initial_total"] == pytest.approx(-0.84245, abs=1e-4)
    assert json.loads(Path("optimize/report.json").read_text())["prompts"] == 2
