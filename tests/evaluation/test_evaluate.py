"""`align evaluate` and `align compare` end to end: reports, resuming, warnings, bad input."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import align
from align.cli import main
from align.commands.compare import compare
from align.commands.evaluate import evaluate
from align.config.evaluate import CompareConfig, EvaluateConfig
from align.evaluation import summary
from align.evaluation.methods import Method, parse_methods
from align.evaluation.tables import tables
from align.evaluation.work import prompt_file
from align.models.lora import add_lora, save_lora
from align.scenes import verify
from align.training.measures import TONE
from evaluation.helpers import settings, tiny


def read(folder, name="report.json"):
    text = (Path(folder) / name).read_text()
    return json.loads(text) if name.endswith("json") else text


def records(folder):
    return [json.loads(file.read_text()) for file in sorted((folder / "prompts").iterdir())]


def pixels(path):
    with Image.open(path) as image:
        return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1).float() / 255


def test_evaluating_two_methods(tmp_path):
    config = EvaluateConfig(
        **settings(tmp_path, methods="base,bon=3", reward="jpeg", also="jpeg-complexity"),
        num_images=2,
    )
    text = evaluate(config, pipe=tiny())
    folder, report = tmp_path / "run", read(tmp_path / "run")
    assert str(folder / "report.html") in text
    assert report["warning"] is None
    assert (report["main"], report["optimized"], report["held_out"]) == (
        "judge", ["jpeg"], ["jpeg-complexity"],
    )  # fmt: skip
    assert report["categories"] == {"animal": 2, "thing": 2}
    base, best = report["figures"]
    assert base["overall"]["judge"]["low"] <= base["overall"]["judge"]["mean"]
    assert best["overall"]["jpeg"]["mean"] > base["overall"]["jpeg"]["mean"]
    assert [base["spent"][k] for k in ("images", "generator_forwards", "reward_forwards")] == [
        1, 2, 0,
    ]  # fmt: skip
    assert [best["spent"][k] for k in ("images", "generator_forwards", "reward_forwards")] == [
        3, 6, 3,
    ]  # fmt: skip
    one = records(folder)[0]["results"][0]
    drawn = align.generate(
        tiny(), ["a cat"], seed=one["seed"], num_inference_steps=2, guidance_scale=1.0
    )
    saved = pixels(folder / one["image"])
    assert (saved - drawn[0]).abs().max() < 1 / 255
    assert one["scores"]["judge"] == pytest.approx(1 - drawn.mean().item(), abs=1e-4)
    page = read(folder, "report.html")
    assert page.count("<img") == 4  # 2 categories, 2 methods
    assert "bon=3 minus base" in page
    assert "| bon=3 | " in read(folder, "report.md")
    assert (folder / "by-category.png").stat().st_size > 5000


def test_resuming_does_only_what_is_missing(tmp_path):
    config = settings(tmp_path)
    evaluate(EvaluateConfig(**config), pipe=tiny())
    folder = tmp_path / "run"
    first, report = records(folder), read(folder)
    times = {file.name: file.stat().st_mtime_ns for file in (folder / "prompts").iterdir()}
    prompt_file(folder, 1).unlink()
    again = config | {"out": None, "resume": str(folder)}
    evaluate(EvaluateConfig(**again), pipe=tiny())
    changed = [
        f.name for f in (folder / "prompts").iterdir() if f.stat().st_mtime_ns != times[f.name]
    ]
    assert changed == ["0001.json"]
    assert [scores(one) for one in records(folder)] == [scores(one) for one in first]
    for key in ("overall", "categories"):
        assert read(folder)["figures"][0][key] == report["figures"][0][key]
    with pytest.raises(ValueError, match="another configuration: its num_images is 4, not 2"):
        evaluate(EvaluateConfig(**again, num_images=2), pipe=tiny())
    with pytest.raises(ValueError, match="is a run of `align evaluate`, not `align compare`"):
        compare(CompareConfig(**again, methods="base"), pipe=tiny())
    with pytest.raises(ValueError, match="exists and is not empty"):
        evaluate(EvaluateConfig(**config), pipe=tiny())


def scores(record):
    keys = ("method", "budget", "seed", "image", "scores")
    return [[one[key] for key in keys] for one in record["results"]]


def test_a_judge_that_was_optimized_is_said_first(tmp_path):
    config = settings(tmp_path, methods="base,bon=2", reward="jpeg", judge="jpeg")
    evaluate(EvaluateConfig(**config, num_images=1), pipe=tiny())
    sentence = "Warning: the judge jpeg is also what methods here were optimized for"
    assert read(tmp_path / "run", "report.md").startswith(sentence)
    page = read(tmp_path / "run", "report.html")
    assert page.index(sentence) < page.index("<h2>")
    assert read(tmp_path / "run")["warning"].startswith(sentence)


def test_the_reward_a_lora_was_trained_on_counts_as_optimized(tmp_path):
    trained = tmp_path / "train"
    trained.mkdir()
    (trained / "run.json").write_text('{"command": "train", "config": {"reward": "jpeg=2"}}')
    add_lora(pipe := tiny(), rank=1)
    save_lora(pipe, trained / "lora")
    tiny().save_pretrained(tmp_path / "model")
    config = settings(tmp_path, model=str(tmp_path / "model"), judge="jpeg")
    evaluate(EvaluateConfig(**config, methods=f"base,lora={trained}", num_images=1))
    report = read(tmp_path / "run")
    assert report["optimized"] == ["jpeg"]
    assert "the judge jpeg is also" in report["warning"]
    base, lora = report["figures"]
    assert lora["overall"] == base["overall"]  # a LoRA that was never trained changes nothing


def test_comparing_at_budgets(tmp_path):
    config = CompareConfig(
        **settings(tmp_path, methods="base,bon", reward="jpeg", budget="1images,2images,5images"),
        repeats=2,
    )
    text = compare(config, pipe=tiny())
    folder, report = tmp_path / "run", read(tmp_path / "run")
    table = {(one["method"], one["budget"]): one for one in report["figures"]}
    assert len(table) == 6
    once, twice, five = (table["bon", f"{n}images"] for n in (1, 2, 5))
    assert once["overall"] == table["base", "1images"]["overall"]
    rewards = [one["overall"]["jpeg"]["mean"] for one in (once, twice, five)]
    assert rewards == sorted(rewards)
    assert rewards[2] > rewards[0]
    assert [one["spent"]["generator_forwards"] for one in (once, twice, five)] == [2, 4, 10]
    assert table["base", "5images"]["spent"]["generator_forwards"] == 2
    assert table["base", "5images"]["overall"] == table["base", "1images"]["overall"]
    assert [(row["from"], row["to"]) for row in report["steps"]] == [
        ("1images", "2images"), ("2images", "5images"),
    ]  # fmt: skip
    assert "At 5images: use " in text
    assert "bon" in text.splitlines()[-2]
    assert (folder / "quality-against-compute.png").stat().st_size > 5000
    assert read(folder, "report.html").count("<svg") == 2


def test_budgets_in_passes_and_seconds(tmp_path, monkeypatch):
    monkeypatch.setattr("psutil.getloadavg", lambda: (0.0, 0.0, 0.0))
    common = {"methods": "bon", "reward": "jpeg", "categories": "thing"}
    config = settings(tmp_path / "a", budget="7nfe", **common)
    compare(CompareConfig(**config), pipe=tiny())
    assert read(config["out"])["figures"][0]["spent"]["images"] == 3  # 2 steps a picture
    config = settings(tmp_path / "b", budget="0.2s", **common)
    compare(CompareConfig(**config), pipe=tiny())
    costs = read(config["out"], "costs.json")
    wanted = max(1, int(0.2 / costs["seconds"]))
    assert read(config["out"])["figures"][0]["spent"]["images"] == wanted
    monkeypatch.setattr("psutil.getloadavg", lambda: (2.0, 0.0, 0.0))
    config = settings(tmp_path / "c", budget="0.2s", **common)
    with pytest.raises(RuntimeError, match="the machine is busy"):
        compare(CompareConfig(**config), pipe=tiny())
    assert not Path(config["out"]).exists()


def test_the_methods_of_align_optimize_join_by_name(tmp_path):
    config = settings(tmp_path, methods="base,zero-order", reward="jpeg", budget="8images")
    compare(CompareConfig(**config, categories="thing"), pipe=tiny())
    base, search = read(tmp_path / "run")["figures"]
    assert search["overall"]["jpeg"]["mean"] > base["overall"]["jpeg"]["mean"]
    assert 2 <= search["spent"]["images"] <= 9
    assert search["spent"]["reward_forwards"] >= search["spent"]["images"] - 1


def test_the_embedded_world(tmp_path, monkeypatch):
    few = summary.training_pictures(100)
    monkeypatch.setattr(summary, "training_pictures", lambda: few)
    monkeypatch.setattr(summary, "TRUE_SCENES", 40)
    monkeypatch.setattr(summary, "TRUE_NEAREST", 5)
    config = EvaluateConfig(
        categories="single,color", per_category=1, num_images=2, num_inference_steps=8,
        guidance_scale=3.0, device="cpu", out=str(tmp_path / "run"),
    )  # fmt: skip
    text = evaluate(config)
    report = read(tmp_path / "run")
    assert (report["judge"], report["main"]) == ("verifier", "exact")
    assert "exactly as asked, judged by verifier on 2 prompts" in text
    assert report["held_out"] == [
        "scenes-detector", "scenes-clip", "scenes-vqa", "scenes-preference",
    ]  # fmt: skip
    for record in records(tmp_path / "run"):
        for one in record["results"]:
            image = pixels(tmp_path / "run" / one["image"])[None]
            exact, partial = verify([record["prompt"]], image)
            assert one["scores"]["exact"] == exact.item()
            assert one["scores"]["partial"] == pytest.approx(partial.item(), abs=1e-4)
    figures = report["figures"][0]
    assert figures["quality"]["pictures"] == 4
    assert figures["quality"]["cmmd"] > 0
    assert 0 < figures["nearest"]["least"] <= figures["nearest"]["mean"] < 0.5
    assert report["references"]["features"] == "scenes-clip"
    assert {*TONE, "grid"} <= figures["hacking"]["means"].keys()
    assert "Against hacking" in tables(report)


def test_methods_by_name():
    methods = parse_methods("base, lora=runs/a=0.5 ,lora=a+lora=b+bon=4,reno")
    assert methods[1] == Method("lora=runs/a=0.5", "base", ("runs/a=0.5",))
    assert methods[2] == Method("lora=a+lora=b+bon=4", "bon", ("a", "b"), 4)
    assert [one.searches for one in methods] == [False, False, True, True]


BAD = {
    ("--methods", "bse"): "there is no method 'bse'; did you mean base",
    ("--methods", "bon=0"): "bon=0 must be a whole number from 1",
    ("--methods", "base,base"): "method base is named twice",
    ("--methods", "bon", "--model", "a/b", "--prompts", "scenes"): (
        "--reward is needed: what bon is to choose by"
    ),
    ("--categories", "colour"): "category 'colour' of scenes is empty; did you mean color",
    ("--prompts", "animals"): "no judge fits animals; give --judge, a reward expression",
    ("--prompts", "animals", "--judge", "verifier"): (
        "judge 'verifier' reads scenes prompts and 64x64 pictures only, not prompt 'cat'"
    ),
    ("--judge", "verifyer"): "unknown reward 'verifyer': did you mean verifier",
    ("--methods", "bon", "--reward", "verifier"): "'verifier' is a judge, not a training signal",
    ("--budget", "30"): "budget is '30'",
    ("--num-images", "0"): "num_images is 0; it must be at least 1",
    ("--methods", "lora=nowhere"): "nowhere",
}


@pytest.mark.parametrize("options", BAD)
def test_bad_input_is_one_sentence_and_writes_nothing(options, tmp_path, capsys):
    assert main(["evaluate", *options, "--out", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err.strip()
    assert BAD[options] in error.splitlines()[-1]
    assert not (tmp_path / "run").exists()
