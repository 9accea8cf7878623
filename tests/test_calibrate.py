"""Calibration: agreement with ratings, proposed subsets and weights, stored tables."""

import csv
import json

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import spearmanr

from align.commands.calibrate import calibrate, correlations, read_ratings
from align.rewards import load_reward
from align.rewards.trust import (
    PUBLISHED,
    PULL,
    agreement_on_other_prompts,
    category_weights,
    fit_weights,
    pairs_of,
    pairwise_accuracy,
    read_table,
    weights_by_category,
)

REWARDS = """
def bright(images, prompts):
    return images.mean((1, 2, 3))

def red(images, prompts):
    return images[:, 0].mean((1, 2)) - images[:, 2].mean((1, 2))

def meaningless(images, prompts):
    return (1e4 * images[:, :, 3, 3].sum(1)).sin()
"""


def write_data(folder, rows) -> str:
    path = folder / "ratings.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return str(path)


@pytest.fixture
def data(tmp_path):
    """15 prompts x 4 pictures in each of two categories: one rated by light, one by redness."""
    rng = np.random.default_rng(0)
    rows = []
    for category in ("light", "warm"):
        for prompt in range(15):
            for i in range(4):
                base = rng.uniform(60, 190, size=3)
                pixels = np.clip(base + rng.normal(0, 20, (8, 8, 3)), 0, 255)
                name = f"{category}-{prompt}-{i}.png"
                Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / name)
                truth = base.mean() if category == "light" else base[0] - base[2]
                rating = round((truth + rng.normal(0, 15)) / 10)
                rows.append({"image": name, "prompt": f"{category} {prompt}",
                             "category": category, "rating": rating})  # fmt: skip
    (tmp_path / "r.py").write_text(REWARDS)
    return write_data(tmp_path, rows), tmp_path


def test_each_category_gets_the_reward_that_agrees_with_its_ratings(data):
    path, folder = data
    names = [f"{folder}/r.py:{name}" for name in ("bright", "red", "meaningless")]
    out = folder / "table.json"
    table = calibrate(path, ",".join(names), out)
    assert json.loads(out.read_text())["categories"].keys() == {"light", "warm"}
    with Image.open(folder / "table.png") as picture:
        assert picture.width > 100
    light, warm = table["categories"]["light"], table["categories"]["warm"]
    assert max(light["weights"], key=light["weights"].get) == names[0]
    assert max(warm["weights"], key=warm["weights"].get) == names[1]
    assert light["weights"].get(names[2], 0) < 0.3 * light["weights"][names[0]]
    assert warm["weights"].get(names[2], 0) < 0.3 * warm["weights"][names[1]]
    figures = light["correlations"][names[0]]
    assert figures["spearman_interval"][0] < figures["spearman"] < figures["spearman_interval"][1]
    assert figures["spearman_interval"][0] > 0.5
    assert figures["pairwise"] > 0.75
    low, high = light["correlations"][names[2]]["kendall_interval"]
    assert low < 0 < high
    honest = light["agreement_on_other_prompts"]
    assert honest["chosen"] > honest["uniform"]
    reward = load_reward(f"z({names[0]},{names[1]})", statistics=out)
    images = torch.rand(2, 3, 8, 8)
    assert torch.isfinite(reward(images, ["a", "b"])).all()


def test_weights_are_in_the_units_of_given_statistics(data):
    path, folder = data
    names = [f"{folder}/r.py:{name}" for name in ("bright", "red")]
    own = calibrate(path, ",".join(names), folder / "own.json")
    wider = {n: s | {"std": 4 * s["std"]} for n, s in own["statistics"].items() if n == names[0]}
    given = own["statistics"] | wider
    table = calibrate(path, ",".join(names), folder / "given.json", statistics=given)
    assert table["statistics"] == given
    ratios = [t["categories"]["light"]["weights"] for t in (own, table)]
    before, after = (row[names[0]] / row.get(names[1], 1e-4) for row in ratios)
    assert after > 2 * before  # a score that is divided by more counts for more


def test_the_proposal_does_not_report_in_sample_luck():
    rng = np.random.default_rng(1)
    groups = np.repeat(np.arange(50), 4)
    noise = rng.normal(size=(200, 8))
    ratings = rng.normal(size=200)
    one = np.full(200, "all")
    weighted = noise @ fit_weights(noise, ratings, groups)
    in_sample = pairwise_accuracy(weighted, ratings, groups)[0]
    honest = agreement_on_other_prompts(noise, ratings, groups, one)["all"]["chosen"]
    assert abs(honest) < 0.2
    assert 2 * in_sample - 1 > honest


def test_two_good_rewards_are_better_than_one():
    rng = np.random.default_rng(2)
    groups = np.repeat(np.arange(50), 4)
    truth = rng.normal(size=200)
    scores = np.stack([truth + rng.normal(size=200), truth + rng.normal(size=200)], 1)
    one = np.full(200, "all")
    weights = weights_by_category(scores, truth, groups, one)["all"]
    assert (weights > 0.7).all()
    honest = agreement_on_other_prompts(scores, truth, groups, one)["all"]
    assert honest["chosen"] > honest["best_single"] + 0.05


def test_what_two_rewards_both_say_counts_once():
    rng = np.random.default_rng(4)
    groups = np.repeat(np.arange(60), 6)
    said, other = rng.normal(size=(2, 360))
    scores = np.stack([said, said + 0.01 * rng.normal(size=360), other], 1)
    weights = fit_weights(scores, said + other + 0.5 * rng.normal(size=360), groups)
    assert weights[0] + weights[1] == pytest.approx(weights[2], rel=0.2)


def test_fitted_weights_are_the_likeliest():
    rng = np.random.default_rng(5)
    groups = np.repeat(np.arange(40), 5)
    scores = rng.normal(size=(200, 3))
    ratings = scores @ [1.0, 0.5, -1.0] + rng.normal(size=200)
    prior = np.array([0.5, 0.5, 0.5])
    differences, counts = pairs_of(scores, ratings, groups)
    assert counts.sum() == pytest.approx(40)

    def loss(w):
        return counts @ np.log1p(np.exp(-differences @ w)) + PULL * ((w - prior) ** 2).sum()

    found = fit_weights(scores, ratings, groups, prior)
    assert found[2] == 0  # a reward that is wrong gets none
    for step in 0.01 * np.eye(3):
        assert loss(found + step) > loss(found)
        assert loss(np.maximum(found - step, 0)) >= loss(found)


def test_a_category_of_few_prompts_takes_the_weights_of_all():
    rng = np.random.default_rng(6)
    groups = np.repeat(np.arange(60), 4)
    scores = rng.normal(size=(240, 2))
    ratings = scores[:, 0] + 0.1 * rng.normal(size=240)
    categories = np.where(groups < 58, "many", "few")
    ratings[groups >= 58] = scores[groups >= 58, 1]  # in two prompts it is the other way
    found = weights_by_category(scores, ratings, groups, categories)
    assert found["few"][0] > found["few"][1]
    assert found["few"].sum() == pytest.approx(2)
    # unrated categories too, and pictures of one prompt each are compared over prompts
    nothing = weights_by_category(scores, np.ones(240), groups, categories)
    assert nothing["few"] == pytest.approx([1, 1])
    across = fit_weights(scores[:58], scores[:58, 0], np.arange(58))
    assert across[0] > 2 * across[1]


def test_pairwise_accuracy_counts_pairs_of_one_prompt_only():
    scores = np.array([1.0, 2.0, 3.0, 0.0, 5.0])
    ratings = np.array([0.0, 1.0, 1.0, 9.0, 2.0])
    groups = np.array([0, 0, 0, 1, 1])
    assert pairwise_accuracy(scores, ratings, groups) == (2 / 3, 3)
    assert pairwise_accuracy(np.zeros(5), ratings, groups)[0] == 0.5
    assert np.isnan(pairwise_accuracy(scores, ratings, np.arange(5))[0])


def test_intervals_cover_the_truth_and_constants_are_undefined():
    rng = np.random.default_rng(3)
    covered = 0
    for _ in range(4):
        x = rng.normal(size=60)
        y = x + rng.normal(size=60)
        low, high = correlations(x, y, np.arange(60))["spearman_interval"]
        covered += low < 0.69 < high  # Spearman's rho of two normals with correlation 0.707
    assert covered >= 3
    figures = correlations(np.zeros(10), np.arange(10.0), np.arange(10))
    assert figures["spearman"] is None
    assert figures["spearman_interval"] is None


def test_published_weights_follow_the_rule():
    table = read_table(PUBLISHED)
    assert "2509.21227" in table["source"]
    rewards = ["hps", "image-reward", "da-score", "vqascore"]
    expected = {"color": (0.39, 1.03, 1.37, 1.21), "shape": (0.96, 1.14, 1.01, 0.89),
                "texture": (0.88, 1.07, 1.04, 1.02), "2d_spatial": (0.99, 0.95, 0.77, 1.29),
                "non_spatial": (1.07, 1.03, 0.91, 0.99), "complex": (0.59, 0.93, 1.07, 1.40),
                "3d_spatial": (1.15, 1.10, 0.82, 0.93)}  # fmt: skip
    for category, weights in expected.items():
        found = category_weights(table, category, rewards)
        assert list(found.values()) == pytest.approx(weights, abs=0.011)
    assert category_weights(table, "color", ["mine", "yours"]) == {"mine": 1.0, "yours": 1.0}
    with pytest.raises(ValueError, match="no category 'colour': it has color, shape"):
        category_weights(table, "colour", rewards)


def test_proposed_weights_come_before_correlations():
    entry = {"correlations": {"a": {"spearman": 0.5}, "b": {"spearman": 0.5}},
             "weights": {"a": 2.0}}  # fmt: skip
    table = {"categories": {"x": entry}}
    assert category_weights(table, "x", ["a", "b"]) == {"a": 2.0, "b": 0.0}
    assert category_weights(table, "x", ["b"]) == {"b": 1.0}


def test_spearman_is_scipys(data):
    path, folder = data
    rated = read_ratings(path)
    assert {r.category for r in rated} == {"light", "warm"}
    reward = load_reward(f"{folder}/r.py:bright")
    from align.commands.calibrate import score

    (values,) = score(rated, reward, batch_size=7).values()
    ratings = [r.rating for r in rated]
    figures = correlations(values, np.array(ratings), np.arange(len(ratings)))
    assert figures["spearman"] == pytest.approx(spearmanr(values, ratings)[0])


def test_bad_data(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    row = {"image": "a.png", "prompt": "a cat", "rating": "3"}
    good = write_data(tmp_path, [row, row])
    assert [r.category for r in read_ratings(good)] == ["all", "all"]
    with pytest.raises(ValueError, match=r"row 2 .* a rating is a finite number, got 'high'"):
        read_ratings(write_data(tmp_path, [row, {**row, "rating": "high"}]))
    with pytest.raises(ValueError, match=r"row 1 .* has no 'image'; needed are image, prompt"):
        read_ratings(write_data(tmp_path, [{**row, "image": ""}]))
    with pytest.raises(FileNotFoundError, match=r"row 1 .*: no picture .*b.png"):
        read_ratings(write_data(tmp_path, [{**row, "image": "b.png"}]))
    (tmp_path / "c.png").write_text("no picture")
    broken = write_data(tmp_path, [{**row, "image": "c.png"}])
    with pytest.raises(ValueError, match=r"c.png cannot be read as a picture"):
        calibrate(broken, "jpeg", tmp_path / "t.json")
    with pytest.raises(FileNotFoundError, match="no weights table"):
        read_table(tmp_path / "absent.json")
    for text in ("{", "[]", "{}"):
        (tmp_path / "t.json").write_text(text)
        with pytest.raises(ValueError, match=r"t.json is no"):
            read_table(tmp_path / "t.json")


def test_command_line(data, capsys, monkeypatch):
    from align.cli import main

    path, folder = data
    monkeypatch.setattr("align.commands.calibrate.RESAMPLES", 10)
    out = folder / "cli.json"
    command = ["rewards", "calibrate", path, "--reward", f"{folder}/r.py:bright", "--out", str(out)]
    assert main(command) == 0
    assert "light (60 pictures)" in capsys.readouterr().out
    assert main(command) == 2
    assert "exists; give another --out or --overwrite" in capsys.readouterr().err
    assert main([*command, "--overwrite"]) == 0
    assert main(["rewards", "calibrate", path]) == 2
    assert "--reward is needed" in capsys.readouterr().err
    assert main(["rewards"]) == 0
    listed = capsys.readouterr().out
    for line in ("jpeg ", "scenes-preference", "-2.5 to 2.5", "verifier-partial", "installed"):
        assert line in listed
