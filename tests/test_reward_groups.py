"""Rewards that see a whole group of images of a prompt."""

import json

import pytest
import torch
from PIL import Image
from tiny import build
from train_helpers import run, small_config, weights

import align
from align.alignprop.train import train
from align.cli import main
from align.config.optimize import SEARCHES
from align.noise_opt.search import optimize
from align.rewards import load_judge, load_reward
from align.rewards.groups import ranks
from align.rewards.identity import terms_of

PROMPTS = ["a", "a", "a", "b", "b"]
GROUPS = {"batch_size": 8, "group_size": 4, "num_inference_steps": 2}


class Spread:
    """The distance of each picture's mean from the group's; remembers what it was called with."""

    wants_group = True
    differentiable = False
    __name__ = "spread"

    def __init__(self):
        self.calls = []

    def __call__(self, images, prompts, metadata):
        self.calls.append((len(images), tuple(prompts), len(metadata)))
        means = images.flatten(1).mean(1)
        return (means - means.mean()).abs()


@pytest.fixture
def images():
    return torch.rand(5, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def test_a_whole_group_is_one_call(images):
    spread = Spread()
    reward = load_reward(spread, micro_batch_size=1)
    scores = reward(images, PROMPTS)
    assert spread.calls == [(3, ("a",) * 3, 3), (2, ("b",) * 2, 2)]
    means = images.flatten(1).mean(1)
    right = torch.cat([(m - m.mean()).abs() for m in (means[:3], means[3:])])
    torch.testing.assert_close(scores, right)
    # ids tell groups of one prompt apart, in any order
    apart = reward(images[:4], ["a"] * 4, groups=[7, 1, 7, 1])
    for rows in ([0, 2], [1, 3]):
        alone = means[rows]
        torch.testing.assert_close(apart[rows], (alone - alone.mean()).abs())


def test_ranks():
    assert ranks(torch.tensor([5.0, 1.0, 3.0, 3.0])).tolist() == [0.75, 0.0, 0.375, 0.375]
    assert ranks(torch.zeros(4)).tolist() == [0.375] * 4
    assert ranks(torch.tensor([0.0, torch.nan, 1.0])).isnan().all()


def test_rank_of_a_reward_beside_others(images):
    jpeg = load_reward("jpeg")(images, PROMPTS)
    places = torch.cat([ranks(jpeg[:3]), ranks(jpeg[3:])])
    reward = load_reward("rank(jpeg)=2,jpeg=0.5", micro_batch_size=2)
    terms = reward.terms(images, PROMPTS)
    assert list(terms) == ["rank(jpeg)", "jpeg"]
    torch.testing.assert_close(terms["rank(jpeg)"], places)
    torch.testing.assert_close(reward(images, PROMPTS), 2 * places + 0.5 * jpeg)
    least = load_reward("min(rank(jpeg),jpeg)")(images, PROMPTS)
    torch.testing.assert_close(least, torch.minimum(places, jpeg))
    assert terms_of("rank(jpeg)") == ["jpeg"]  # a judge by jpeg is not held out
    assert list(reward.alone().terms(images[:1], ["a"])) == ["jpeg"]


@pytest.mark.parametrize(
    ("count", "groups", "message"),
    [(1, None, "'a' has only one"), (3, [0, 0, 1], "'a' has only one"), (2, [0], "1 groups"),
     (4, [0] * 4, "a group has several")],
)  # fmt: skip
def test_what_is_no_group(images, count, groups, message):
    with pytest.raises(ValueError, match=message):
        load_reward("rank(jpeg)").terms(images[:count], PROMPTS[:count], groups=groups)


COMMANDS = [
    "generate a",
    "nar generate a",
    "optimize a --method evolution",
    "train --out run",
    "rewards explain a a.png",
    "rewards stress",
    "evaluate --methods bon --prompts p.txt --judge jpeg",
]


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_that_score_single_images_refuse_it(tmp_path, monkeypatch, capsys, command):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "p.txt").write_text("a\nb")
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    assert main([*command.split(), "--reward", "rank(jpeg)"]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "rank(jpeg) compares the images of a prompt" in line
    assert not (tmp_path / "runs").exists()
    assert not (tmp_path / "run").exists()


def test_refused_elsewhere(tmp_path):
    file = tmp_path / "g.py"
    file.write_text("def f(images, prompts):\n    return 0\nf.wants_group = True\n")
    stored = tmp_path / "stats.json"
    stored.write_text(json.dumps({f"{file}:f": {"mean": 0, "std": 1}}))
    with pytest.raises(ValueError, match=r"z.* cannot normalise"):
        load_reward(f"z({file}:f)", statistics=stored)
    with pytest.raises(ValueError, match="a judge takes scores of single images"):
        load_judge("rank(jpeg)")
    for method in SEARCHES.keys() - {"bon"}:
        with pytest.raises(ValueError, match=f"method {method} takes scores of single"):
            optimize(build("sd"), "a", "rank(jpeg)", align.OptimizeConfig(method=method))
    settings = GROUPS | {"method": "dpo", "reward": "rank(jpeg)"}
    with pytest.raises(ValueError, match="normalize_rewards"):
        train(small_config(tmp_path, normalize_rewards=True, **settings), pipe=build("sd"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("method", ["dpo", "nft"])
def test_training_hands_over_whole_groups(tmp_path, method):
    """Two groups may have one prompt: their ids keep them apart."""
    (tmp_path / "prompts.txt").write_text("a")
    spread = Spread()
    settings = {"method": method, "micro_batch_size": 8, "sample_every": 1, "guidance_scale": 1.0}
    judged = {"judge": "jpeg", "judge_prompts": "animals", "judge_images": 4}
    result, _ = run(tmp_path, reward=spread, **GROUPS | settings | judged)
    assert {size for size, _, _ in spread.calls} == {4}
    assert result.metrics[-1]["reward"] > 0
    assert "judge_reward" not in result.metrics[-1]
    assert result.metrics[-1]["judge"] < 0


def test_ranks_train_as_the_scores_they_come_from(tmp_path):
    """dpo takes the order alone, so a rank trains what its term does."""
    runs = [
        run(tmp_path / name, reward=expression, method="dpo", **GROUPS)[1]
        for name, expression in (("plain", "jpeg"), ("rank", "rank(jpeg)"))
    ]
    assert torch.equal(*map(weights, runs))
    report = json.loads((tmp_path / "rank" / "run" / "report.json").read_text())
    assert list(report["pictures"]["before"]) == ["jpeg"]  # of single pictures


def test_best_of_n_is_one_round():
    spread = Spread()
    config = align.OptimizeConfig(method="bon", seeds=5, batch_size=2, num_inference_steps=1)
    (step,) = list(optimize(build("sd"), "a", spread, config))
    assert [size for size, _, _ in spread.calls] == [5]
    assert step.best_total == step.totals.max()
    assert step.generator_forwards == step.reward_forwards == 5
