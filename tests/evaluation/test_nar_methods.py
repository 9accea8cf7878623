"""NAR in `align evaluate` and `align compare`: base, best of N and aligned, counted honestly."""

import json
import re

import pytest
import torch

from align.commands.compare import compare
from align.commands.evaluate import evaluate
from align.config.evaluate import CompareConfig, EvaluateConfig
from align.evaluation.methods import Method, parse_methods
from tests.evaluation.helpers import settings, tiny
from tests.nar.align_helpers import run, tiny_pipe


@pytest.fixture(scope="module")
def nar(tmp_path_factory):
    """A saved tiny NAR model, and the run of an alignment of it."""
    folder = tmp_path_factory.mktemp("nar")
    tiny_pipe().save_pretrained(folder / "model")
    result, _ = run(folder, model=str(folder / "model"), steps=2, learning_rate=0.05)
    return folder / "model", result.out


def spent_of(folder):
    """Passes, pictures and scores of each method's first picture, by method and budget."""
    file = sorted((folder / "prompts").glob("*.json"))[0]
    results = json.loads(file.read_text())["results"]
    return {(one["method"], one["budget"]): one["spent"] for one in results if not one["repeat"]}


def test_names_of_methods(nar):
    model, aligned = map(str, nar)
    text = f"nar,nar+bon=4,nar={aligned},nar={model}+bon=2,nar={aligned}+bon,nar={model}"
    methods = parse_methods(text)
    default = "embedded/nar-scenes"
    assert methods[0] == Method("nar", "base", nar=default)
    assert methods[1] == Method("nar+bon=4", "bon", (), 4, default)
    assert methods[2] == Method(f"nar={aligned}", "base", (aligned,), nar=model)
    assert methods[3] == Method(f"nar={model}+bon=2", "bon", (), 2, model)
    assert methods[4] == Method(f"nar={aligned}+bon", "bon", (aligned,), None, model)
    assert [m.searches for m in methods] == [False, True, False, True, True, False]
    with pytest.raises(ValueError, match="reno needs noise, which NAR has none"):
        parse_methods("nar+reno")
    with pytest.raises(ValueError, match="bon=0 must be a whole number"):
        parse_methods("nar+bon=0")


@pytest.mark.parametrize(
    ("before", "now"),
    [("nar-bon", "nar+bon"), ("nar-bon=16", "nar+bon=16"), ("nar-bon=runs/a", "nar=runs/a+bon")],
)
def test_the_former_name_of_best_of_n_says_the_new_one(before, now):
    with pytest.raises(ValueError, match=f"{re.escape(repr(before))} any more") as refused:
        parse_methods(f"base,{before}")
    assert str(refused.value).endswith(f"it is called {now}")
    assert parse_methods(now)[0].search == "bon"


def test_every_form_side_by_side(nar, tmp_path):
    torch.set_num_threads(1)
    model, aligned = map(str, nar)
    names = [f"nar={model}", f"nar={model}+bon", f"nar={aligned}", "base", "bon"]
    config = CompareConfig(
        **settings(tmp_path, methods=",".join(names), reward="jpeg", also="jpeg",
                   budget="1images,3images", categories="thing")
    )  # fmt: skip
    folder = compare(config, pipe=tiny())
    assert "| nar=" in (tmp_path / "run/report.md").read_text()
    assert folder
    spent = spent_of(tmp_path / "run")
    # 2x3 tokens: 4 wavefronts; unguided, so a pass of a picture is one forward
    single = spent[names[0], "1images"]
    assert (single["images"], single["generator_forwards"]) == (1, 4)
    assert single["reward_forwards"] == 0
    three = spent[names[1], "3images"]
    assert (three["images"], three["generator_forwards"], three["reward_forwards"]) == (3, 12, 3)
    assert spent[names[2], "3images"]["generator_forwards"] == 4  # nothing more is bought
    assert spent["bon", "3images"]["generator_forwards"] == 6


def test_guided_passes_count_twice_and_nfe_buys_by_passes(nar, tmp_path):
    torch.set_num_threads(1)
    pipe = tiny_pipe()
    pipe.scheduler = type(pipe.scheduler)(guidance_scale=2.0)
    pipe.save_pretrained(tmp_path / "guided")
    name = f"nar={tmp_path / 'guided'}+bon"
    config = CompareConfig(
        **settings(tmp_path, methods=name, reward="jpeg", also="jpeg", budget="4nfe,9nfe",
                   categories="thing")
    )  # fmt: skip
    compare(config, pipe=tiny())
    spent = spent_of(tmp_path / "run")
    assert (spent[name, "4nfe"]["images"], spent[name, "4nfe"]["generator_forwards"]) == (1, 8)
    assert (spent[name, "9nfe"]["images"], spent[name, "9nfe"]["generator_forwards"]) == (2, 16)


def test_an_aligned_model_draws_otherwise_than_its_base(nar, tmp_path):
    torch.set_num_threads(1)
    model, aligned = map(str, nar)
    config = EvaluateConfig(
        **settings(tmp_path, methods=f"nar={model},nar={aligned}", num_images=2, also="jpeg")
    )
    evaluate(config)
    report = json.loads((tmp_path / "run/report.json").read_text())
    text = json.dumps(report)
    assert "brightness" not in text  # a callable has no name that could be scored again
    images = sorted((tmp_path / "run/images").glob("*.png"))
    pairs = [(p, p.with_name(p.name.replace("-0-", "-1-", 1))) for p in images if "-0-0-" in p.name]
    assert any(a.read_bytes() != b.read_bytes() for a, b in pairs)
