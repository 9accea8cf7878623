"""`align lora mix | export | merge` end to end, against plain diffusers."""

import json

import pytest
import torch
from diffusers import StableDiffusionPipeline
from tiny import build

from align.cli import main
from align.diffusion.sample import generate
from align.models.load import load_pipeline
from align.models.lora import add_lora, save_lora


def run(*arguments):
    return main(["lora", *map(str, arguments)])


def pictures(pipe):
    return generate(pipe, ["a cat", "a dog"], seed=3, num_inference_steps=2)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A model folder, and two LoRAs for it, one of them in a run's folder."""
    root = tmp_path_factory.mktemp("files")
    build("sd").save_pretrained(root / "model")
    for seed, folder in enumerate((root / "a", root / "run" / "lora")):
        pipe = build("sd")
        torch.manual_seed(seed)
        for parameter in add_lora(pipe, rank=2):
            parameter.data = torch.randn_like(parameter) * 0.3
        save_lora(pipe, folder)
    saved = {"command": "train", "config": {"model": str(root / "model")}}
    (root / "run" / "run.json").write_text(json.dumps(saved))
    return root


@pytest.fixture(scope="module")
def expected(files):
    """The pictures of 0.3 a - 0.7 run, and how much each LoRA alone differs from them."""
    loras = [f"{files}/a=0.3", f"{files}/run=-0.7"]
    return pictures(load_pipeline(files / "model", lora=loras, device="cpu"))


@pytest.mark.parametrize("model", [False, True])
def test_mix_adds_deltas_with_their_weights(files, expected, tmp_path, capsys, model):
    out = tmp_path / "mixed"
    named = ["--model", files / "model"] if model else []
    assert run("mix", f"{files}/a=0.3", f"{files}/run=-0.7", *named, "--out", out) == 0
    assert capsys.readouterr().out.strip() == str(out)
    assert json.loads((out / "run.json").read_text())["command"] == "lora-mix"
    mixed = load_pipeline(files / "model", lora=str(out), device="cpu")
    assert (pictures(mixed) - expected).abs().max() < 1e-4
    alone = load_pipeline(files / "model", lora=f"{files}/a", device="cpu")
    assert (pictures(alone) - expected).abs().max() > 1e-2


def test_export_to_kohya_is_read_by_plain_diffusers(files, tmp_path, capsys):
    """The model is that of the run which trained the LoRA."""
    assert run("export", files / "run", "--format", "kohya", "--out", tmp_path / "k") == 0
    path = tmp_path / "k" / "lora.safetensors"
    assert capsys.readouterr().out.strip() == str(path)
    plain = StableDiffusionPipeline.from_pretrained(files / "model")
    plain.load_lora_weights(str(path))
    ours = load_pipeline(files / "model", lora=str(files / "run"), device="cpu")
    assert (pictures(plain) - pictures(ours)).abs().max() < 1e-4


def test_merge_writes_a_plain_pipeline(files, expected, tmp_path):
    loras = [f"{files}/a=0.3", f"{files}/run=-0.7"]
    assert run("merge", *loras, "--model", files / "model", "--out", tmp_path / "m") == 0
    plain = StableDiffusionPipeline.from_pretrained(tmp_path / "m")
    assert (pictures(plain) - expected).abs().max() < 1e-4
    assert not list((tmp_path / "m").glob("*.part"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["mix", "a=1"], "got 1 LoRAs; name at least 2"),
        (["mix", "none.safetensors", "none.safetensors"], "none.safetensors"),
        (["export"], "got 0 LoRAs"),
        (["export", "a"], "--model is needed"),
        (["export", "a", "--format", "kohja"], "one of diffusers, kohya"),
        (["merge", "a", "--out", "a", "--model", "x"], "exists and is not empty"),
        (["mxi"], "needs one of: lora mix, lora export, lora merge"),
        ([], "needs one of: lora mix, lora export, lora merge"),
    ],
)
def test_wrong_input(arguments, message, files, capsys, monkeypatch):
    monkeypatch.chdir(files)
    assert run(*arguments) == 2
    assert message in capsys.readouterr().err
