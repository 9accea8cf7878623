"""Each published reward by itself in the commands: `train`, `optimize`, NAR's best of N."""

import json

import pytest
from nar.test_pipeline import LABELS, image_tokenizer, transformer
from tiny import build
from tiny_rewards import DETECTORS, JUDGES, NETWORKS, installed_weights

from align.cli import main
from align.nar import NARPipeline, NARScheduler
from align.runs.folder import read_metrics

REWARDS = (
    *NETWORKS,
    "nsfw",
    *DETECTORS[:2],
    DETECTORS[3],
    *JUDGES,
    "geneval:soft",
)  # OWL-ViT twice, YOLOS once
# Those whose questions come with the prompts' file.
ASKED = ("geneval2", "questions:soft")
installed = installed_weights


@pytest.fixture(scope="module")
def place(tmp_path_factory, installed):
    """A tiny SD-Turbo, a tiny NAR model and prompts; rewards' weights are installed."""
    folder = tmp_path_factory.mktemp("models")
    build("sd-turbo").save_pretrained(folder / "turbo")
    pipe = NARPipeline(transformer(), image_tokenizer(), NARScheduler(), id2label=LABELS)
    pipe.save_pretrained(folder / "nar")
    row = {
        "prompt": "a dog",
        "vqa_list": [["How many dogs are there?", "one"], ["Is there a dog?", "Yes"]],
        "questions": [{"id": "1", "question": "Is there a dog?", "parents": []}],
    }
    (folder / "prompts.jsonl").write_text(json.dumps(row))
    return folder


@pytest.mark.parametrize("name", [*REWARDS, *ASKED])
def test_train(place, tmp_path, name):
    out = tmp_path / "run"
    assert main([
        "train", "--model", str(place / "turbo"), "--prompts", str(place / "prompts.jsonl"),
        "--reward", name, "--steps", "1", "--batch-size", "1", "--num-inference-steps", "1",
        "--guidance-scale", "1", "--lora-rank", "1", "--tracker", "none", "--device", "cpu",
        "--sample-every", "0", "--out", str(out),
    ]) == 0  # fmt: skip
    (record,) = read_metrics(out)
    assert set(record["terms"]) == {name}
    assert record["grad_norm"] > 0


@pytest.mark.parametrize("name", [*REWARDS, *ASKED])
def test_optimize(place, tmp_path, name):
    out = tmp_path / "run"
    assert main([
        "optimize", "--prompts", str(place / "prompts.jsonl"), "--model", str(place / "turbo"),
        "--reward", name, "--method", "reno", "--iterations", "1",
        "--weights", "uniform", "--device", "cpu", "--out", str(out),
    ]) == 0  # fmt: skip
    (history,) = out.rglob("history.jsonl")
    first, *_ = (json.loads(line) for line in history.read_text().splitlines())
    assert set(first["terms"]) == {name}


@pytest.mark.parametrize("name", REWARDS)
def test_best_of_n_of_nar(place, tmp_path, name):
    scores = []
    for n in (1, 2):
        out = tmp_path / str(n)
        assert main([
            "nar", "generate", "--model", str(place / "nar"), "--class-labels", "dog",
            "--reward", name, "--best-of", str(n), "--device", "cpu", "--out", str(out),
        ]) == 0  # fmt: skip
        (record,) = read_metrics(out)
        assert record["reward"] == record[name]
        scores.append(record["reward"])
    assert scores[1] >= scores[0]
