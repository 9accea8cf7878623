"""What LoRAs were trained by, and which rewards are the same however they are written."""

import json

import pytest
import torch
from tiny import tiny_pipeline

import align
from align.commands.lora import model_of
from align.config.commands import LoraFilesConfig
from align.config.evaluate import CompareConfig, EvaluateConfig
from align.config.optimize import OptimizeConfig
from align.evaluation.judging import Judges, load_judges, optimized_terms
from align.evaluation.methods import parse_methods
from align.evaluation.nar_methods import nar_source
from align.language.prompts import PromptSet
from align.rewards import load_judge, load_reward
from align.rewards.identity import shared, terms_of
from align.rewards.provenance import choosing_terms, run_of, trained_terms


def wrote(folder, **config):
    """A run's folder that says how it was made, with a LoRA of no content in it."""
    (folder / "lora").mkdir(parents=True)
    (folder / "lora" / "pytorch_lora_weights.safetensors").write_bytes(b"")
    (folder / "run.json").write_text(json.dumps({"config": config}))
    return str(folder)


def test_a_lora_tells_its_run_wherever_it_lies_in_it(tmp_path):
    """Also a checkpoint, three folders below it: `align compare` and `align lora` ask alike."""
    run = tmp_path / "run"
    wrote(run, model="runs/nar-model", reward="jpeg")
    saved = json.loads((run / "run.json").read_text()) | {"command": "nar align"}
    (run / "run.json").write_text(json.dumps(saved))
    checkpoint = run / "checkpoints" / "step-2" / "lora.safetensors"
    checkpoint.parent.mkdir(parents=True)
    checkpoint.write_bytes(b"")
    for place in (run, run / "lora", run / "lora/pytorch_lora_weights.safetensors", checkpoint):
        assert run_of(str(place)) == saved
        assert run_of(f"{place}=0.5") == saved
        assert nar_source(str(place)) == ("runs/nar-model", (str(place),))
        assert model_of(LoraFilesConfig(source=(f"{place}=0.5",))) == "runs/nar-model"
    assert run_of(str(tmp_path / "nothing")) == {}


def warning(judge, reward=None, methods="base,bon", **settings):
    config = CompareConfig(model="x/y", methods=methods, reward=reward, judge=judge, **settings)
    parsed = parse_methods(methods)
    terms = optimized_terms(config, parsed)
    return Judges(judge, load_reward("jpeg"), terms, None, False).warning


def test_sets_and_aliases_are_what_they_load():
    assert terms_of("carinox") == ["hps", "image-reward", "da-score", "vqascore"]
    assert "the judge hps is also" in warning("hps", "carinox")
    assert "the judge pickscore is also" in warning("pickscore=2", "z(jpeg),reno=0.5")
    assert "the judge hps is also" in warning("hps", "hps:2.1")
    assert "blip-vqa is also" in warning("blip-vqa", "da-score")
    assert "are also" in warning("reno", "carinox")
    clip = "clip:openai/clip-vit-large-patch14"
    assert f"the judge {clip} is also" in warning(f"min({clip},jpeg)", "clip")
    assert "is also" in warning("vqascore:zhiqiulin/clip-flant5-xl", "vqascore")
    for judge, reward in (("hps:2.0", "hps"), ("clip", "aesthetic"), ("mps", "carinox")):
        assert warning(judge, reward) is None


def test_functions_and_weights_in_files_are_compared_by_contents(tmp_path, monkeypatch):
    code = "def f(images, prompts):\n    return images.mean((1, 2, 3))\ng = f\n"
    for name in ("mine.py", "copy.py"):
        (tmp_path / name).write_text(code)
    monkeypatch.chdir(tmp_path)
    mine = f"{tmp_path}/mine.py"
    assert shared([f"{mine}:f", f"{mine}:g", "copy.py:f"], ["mine.py:f"]) == [
        f"{mine}:f", "copy.py:f",
    ]  # fmt: skip
    monkeypatch.setenv("ALIGN_WEIGHTS", str(tmp_path / "weights"))
    for folder in ("weights/xswu/HPSv2", "other"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "HPS_v2.1_compressed.pt").write_bytes(b"the weights")
    assert shared(["hps:./other", "hps:other/HPS_v2.1_compressed.pt"], ["hps"]) == [
        "hps:./other", "hps:other/HPS_v2.1_compressed.pt",
    ]  # fmt: skip
    (tmp_path / "other" / "HPS_v2.1_compressed.pt").write_bytes(b"others")
    assert shared(["hps:./other"], ["hps"]) == []


def test_a_lora_counts_with_all_that_it_was_trained_from(tmp_path):
    a = wrote(tmp_path / "a", reward="scenes-vqa", judge="jpeg", model="embedded/scenes")
    b = wrote(tmp_path / "b", reward="scenes-clip", lora=[f"{a}=0.5"], model="embedded/scenes")
    mixed = wrote(tmp_path / "mixed", source=["a/lora", f"{b}/lora"])  # as seen from its folder
    for lora in (b, f"{b}/lora", f"{b}/lora/pytorch_lora_weights.safetensors", f"{b}=2"):
        assert trained_terms([lora]) == ["scenes-clip", "scenes-vqa"]
    assert set(trained_terms([mixed])) == {"scenes-clip", "scenes-vqa"}
    loop = wrote(tmp_path / "loop", reward="hps", lora=[str(tmp_path / "loop")])
    assert trained_terms([loop]) == ["hps"]
    assert "scenes-vqa is also" in warning("scenes-vqa", methods=f"base,lora={b}")
    merged = wrote(tmp_path / "merged", source=[b])
    config = EvaluateConfig(model=merged, judge="scenes-vqa")
    assert optimized_terms(config, parse_methods("base")) == ("scenes-clip", "scenes-vqa")


def test_a_judge_that_chose_the_lora_is_told(tmp_path):
    a = wrote(tmp_path / "a", reward="scenes-vqa", judge="jpeg")
    (tmp_path / "a" / "lora-best").mkdir()
    assert choosing_terms([f"{a}/lora-best=0.7"]) == ["jpeg"]
    assert choosing_terms([f"{a}/lora"]) == []
    found = Judges("jpeg", load_reward("jpeg"), ("scenes-vqa",), None, False, ("jpeg",)).warning
    assert "a lora-best here was chosen by the judge jpeg itself" in found


def test_what_was_optimized_is_in_the_report_under_every_name(monkeypatch):
    monkeypatch.setitem(align.rewards.catalogue.SETS, "pair", "scenes-clip=1,scenes-vqa=1")
    prompts = PromptSet("mine", ["two green stars"], [{"category": "numeracy"}])
    config = CompareConfig(methods="base,bon", reward="pair", judge="scenes-clip")
    judges = load_judges(config, prompts, parse_methods(config.methods), (64, 64))
    assert judges.optimized == ("scenes-clip", "scenes-vqa")
    assert "the judge scenes-clip is also" in judges.warning
    measures = ["judge", "exact", "scenes-clip", "scenes-vqa", "scenes-detector"]
    assert judges.optimized_among(measures) == ["scenes-clip", "scenes-vqa"]


@pytest.mark.parametrize("name", ["verifier", "verifier-partial", "min(verifier,jpeg)"])
def test_the_verifier_is_no_reward_as_an_object_either(name):
    judge = load_judge(name)
    function = next(iter(judge.functions.values()))
    for reward in (judge, judge.terms, function):
        with pytest.raises(ValueError, match="is a judge, not a training signal"):
            load_reward(reward)
    with pytest.raises(ValueError, match="is a judge, not a training signal"):
        align.optimize(tiny_pipeline("sd-turbo"), "two dogs", judge, OptimizeConfig(method="bon"))
    assert load_judge(judge) is judge
    assert torch.is_tensor(load_judge("jpeg")(torch.rand(1, 3, 16, 16), ["a"]))
