"""What docs/adding.md says: a toy reward, search method, training method and family, each added by
one entry of a table."""

import runpy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from doc_blocks import blocks
from tiny import build
from train_helpers import small_config

import align
from align.alignprop.train import train
from align.arguments import parse
from align.cli import main
from align.config import optimize as searching
from align.config import train as training
from align.demo import choices, optimize_handler
from align.diffusion.denoisers import FAMILIES, family_of
from align.diffusion.families import stable_diffusion
from align.evaluation.methods import parse_methods
from align.models.hub import pipeline_class
from align.rewards.catalogue import REWARDS, Named

# The examples of the page.
TOYS = [b.text for b in blocks("docs/adding.md") if b.info == "python" and "def " in b.text]


@pytest.fixture(autouse=True)
def toys(tmp_path, monkeypatch):
    (tmp_path / "toys.py").write_text("\n\n".join(TOYS))
    monkeypatch.syspath_prepend(tmp_path)
    choices.rewards.cache_clear()
    yield
    choices.rewards.cache_clear()


def docs(page="adding"):
    """A page of the docs as it is built."""
    docs = Path(__file__).parents[1] / "docs"
    source = [(docs / f"{page}.md").read_text(encoding="utf-8")]
    runpy.run_path(str(docs / "conf.py"))["fill_tables"](None, page, source)
    return source[0]


def test_a_reward(monkeypatch, capsys):
    assert "| `toy` |" not in docs()
    monkeypatch.setitem(REWARDS, "toy", Named("toys:load", "how warm it is", "0 to 1"))
    images = torch.rand(2, 3, 8, 8)
    score = align.load_reward("toy=2,jpeg=0")(images, ["a", "b"])
    torch.testing.assert_close(score, 2 * (images[:, 0] - images[:, 2]).mean((1, 2)))
    assert main(["rewards"]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("toy ")]
    assert line.split()[1:5] == ["reward", "0", "to", "1"]
    assert "how warm it is" in line
    assert "toy" in choices.expressions()
    assert choices.check_reward("toy=2", allow_any=False) == "toy=2"
    assert "| `toy` | how warm it is |" in docs()
    with pytest.raises(ValueError, match="toy"):
        align.load_reward("toyy")


def test_a_search_method(monkeypatch):
    with pytest.raises(ValueError, match=r"--method is .toy."):
        parse(searching.OptimizeRunConfig, ["a", "--method", "toy"], "optimize")
    toy = searching.SearchMethod("toys:nearest", "Toy: three noises", {"iterations": 3})
    monkeypatch.setitem(searching.SEARCHES, "toy", toy)
    config = parse(searching.OptimizeRunConfig, ["a", "--method", "toy"], "optimize")
    assert config.method == "toy"
    config = align.OptimizeConfig(method="toy", num_inference_steps=1)
    steps = list(align.optimize(build("sd"), "a", "jpeg", config))
    assert [step.phase for step in steps] == ["nearest"] * 3
    assert steps[-1].best_total == max(step.total for step in steps)
    (method,) = parse_methods("toy")
    assert (method.search, method.searches, method.follows_gradients) == ("toy", True, False)
    assert ("Toy: three noises", "toy") in optimize_handler.method_choices()
    assert "| `toy` | Toy: three noises |" in docs()


def test_a_training_method(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="alignprop, dpo"):
        small_config(tmp_path, method="toy")
    once = train(small_config(tmp_path, steps=1, out=str(tmp_path / "once")), pipe=build("sd"))
    toy = training.TrainMethod("toys:loss", "AlignProp squared", through_sampler=True)
    monkeypatch.setitem(training.METHODS, "toy", toy)
    assert parse(training.TrainConfig, ["--method", "toy"], "train").method == "toy"
    squared = train(small_config(tmp_path, steps=1, method="toy"), pipe=build("sd"))
    (plain,), (other,) = once.metrics, squared.metrics
    slope = 2 * abs(plain["reward"])  # of the square of minus the reward
    assert other["grad_norm"] == pytest.approx(slope * plain["grad_norm"], rel=1e-3)
    assert "AlignProp squared" in (squared.out / "lora" / "README.md").read_text()
    assert "| `toy` | AlignProp squared |" in docs()


class ToyPipeline(StableDiffusionPipeline):
    """A pipeline of a class of its own."""


def test_a_family(monkeypatch, capsys):
    pipe = build("sd")
    plain = align.generate(pipe, "a", seed=0, num_inference_steps=1)
    toy = ToyPipeline(**pipe.components, requires_safety_checker=False)
    toy.set_progress_bar_config(disable=True)

    def make_forward(*arguments):
        forward = stable_diffusion.FAMILY.make_forward(*arguments)
        return lambda latents, timestep, embeds: -forward(latents, timestep, embeds)

    family = replace(stable_diffusion.FAMILY, name="Toy", make_forward=make_forward)
    monkeypatch.setitem(FAMILIES, "ToyPipeline", family)
    assert family_of(toy) is family
    assert (align.generate(toy, "a", seed=0, num_inference_steps=1) - plain).abs().max() > 1e-3
    assert main(["models"]) == 0
    assert "ToyPipeline" in capsys.readouterr().out
    with pytest.raises(ValueError, match="ToyPipeline"):
        pipeline_class(Path("other"), {"_class_name": "Other"})
    assert "| `ToyPipeline` | Toy |" in docs()
