"""Intervals: coverage where the truth is known, strata, pairs, degenerate cases."""

import numpy as np
import pytest
from scipy import stats

from align.evaluation.statistics import difference, estimate


def test_coverage_of_few_prompts_with_few_pictures():
    """`scripts/bench/interval_coverage.py` measures it finely; a broken interval shows here too."""
    generator, hits = np.random.default_rng(0), 0
    for repetition in range(300):
        chances = generator.beta(1.2, 1.0, size=12)
        values = generator.binomial(4, chances) / 4
        found = estimate(values, bounds=(0, 1), seed=repetition)
        hits += found.low <= 1.2 / 2.2 <= found.high
    assert 0.91 <= hits / 300 <= 0.985


def test_for_normal_values_it_is_students_interval():
    values = np.random.default_rng(1).normal(size=15)
    found = estimate(values)
    low, high = stats.t.interval(0.95, 14, values.mean(), stats.sem(values))
    assert found.low == pytest.approx(low, abs=0.1)
    assert found.high == pytest.approx(high, abs=0.1)
    assert found.mean == pytest.approx(values.mean())


def test_categories_weigh_the_same_and_their_differences_do_not_widen_the_interval():
    spread = np.linspace(-0.1, 0.1, 10)
    values = np.concatenate([0.2 + spread, 0.8 + spread, 0.8 + spread[:5] - spread[:5].mean()])
    labels = ["a"] * 10 + ["b"] * 10 + ["c"] * 5
    found, pooled = estimate(values, labels), estimate(values)
    assert found.mean == pytest.approx(0.6)
    assert pooled.mean > 0.65 - 0.1
    assert found.high - found.low < 0.25 * (pooled.high - pooled.low)


def test_categories_of_unequal_spread_count_as_fewer_prompts():
    """Welch and Satterthwaite: where one category has all the spread, the others tell nothing."""
    wide, narrow = np.array([0.0, 1.0, 0.2]), np.array([0.5, 0.5, 0.5])
    both = estimate(np.concatenate([wide, narrow]), ["a"] * 3 + ["b"] * 3)
    alone = estimate(wide)
    assert both.high - both.low == pytest.approx((alone.high - alone.low) / 2, rel=0.02)


def test_pairs_cancel_what_prompts_have_in_common():
    hard = np.random.default_rng(2).uniform(size=40)
    rise = np.random.default_rng(3).normal(0.1, 0.02, size=40)
    found = difference(hard, hard + rise)
    assert found.decided
    assert found.high - found.low < 0.02
    assert not difference(hard, hard).decided
    assert not difference(hard, np.random.default_rng(4).permutation(hard)).decided


def test_prompts_that_all_agree_are_not_certain():
    nothing = estimate([0.0] * 12, bounds=(0, 1))
    assert (nothing.mean, nothing.low) == (0, 0)
    assert nothing.high == pytest.approx(stats.binomtest(0, 12).proportion_ci().high)
    half = estimate([0.5] * 4, bounds=(0, 1))
    assert half.low < 0.1
    assert half.high > 0.9
    assert estimate([0.2, 0.2, 0.7], ["a", "a", "b"], bounds=(0, 1)).low == 0
    alone = estimate([0.3])
    assert (alone.low, alone.high) == (float("-inf"), float("inf"))


def test_intervals_stay_inside_the_bounds():
    found = estimate([1, 1, 1, 1, 0.5], bounds=(0, 1))
    assert found.high == 1
    assert found.low < 0.8


@pytest.mark.parametrize(
    ("values", "strata", "message"),
    [
        ([], None, "there are no values"),
        ([0.1, float("nan")], None, "must be finite"),
        ([0.1, 0.2], ["a"], "got 1 strata for 2 values"),
    ],
)
def test_bad_values(values, strata, message):
    with pytest.raises(ValueError, match=message):
        estimate(values, strata)
    with pytest.raises(ValueError, match="pairs need one of each"):
        difference([1.0], [1.0, 2.0])


def coverage(sizes, trials=150):
    """Of standard normal values in categories of these sizes, whose mean is 0."""
    strata = [f"s{i}" for i, n in enumerate(sizes) for _ in range(n)]
    generator, hits = np.random.default_rng(0), 0
    for trial in range(trials):
        found = estimate(generator.normal(size=len(strata)), strata, seed=trial)
        hits += found.low <= 0 <= found.high
    return hits / trials


@pytest.mark.parametrize(
    "sizes",
    [[1] * 5 + [2], [1] * 5 + [8], [1, 1, 1, 20], [1, 30], [1, 1, 8, 8, 8], [2], [3], [2, 2]],
)
def test_coverage_where_categories_have_one_prompt_or_there_are_hardly_any(sizes):
    assert coverage(sizes) >= 0.9  # 0.94 to 0.98 over many trials


def test_one_prompt_of_a_category_has_the_spread_of_all():
    """Student's interval by hand: variance (1 + 1 / 30) / 4 of that of all, where all are alike."""
    values = np.random.default_rng(5).normal(size=31)
    found = estimate(values, ["a"] + ["b"] * 30)
    error = ((values.var(ddof=1) + values[1:].var(ddof=1) / 30) / 4) ** 0.5
    assert found.mean == pytest.approx((values[0] + values[1:].mean()) / 2)
    assert found.high - found.mean == pytest.approx(stats.t.ppf(0.975, 30) * error, rel=0.03)


@pytest.mark.parametrize("bounds", [None, (0.0, 1.0)])
def test_differences_of_shares_on_few_prompts_are_seldom_decided_wrongly(bounds):
    generator, strata = np.random.default_rng(1), ["a", "a", "b", "b", "c", "c"]
    hits, decided = 0, 0
    for trial in range(150):
        draws = [(generator.random(6) < p).astype(float) for p in (0.95, 0.9, 0.95)]
        good, bad, other = draws
        found = difference(good, bad, strata, bounds=bounds, seed=trial)
        hits += found.low <= -0.05 <= found.high
        decided += difference(good, other, strata, bounds=bounds, seed=trial).decided
    assert hits / 150 >= 0.92
    assert decided / 150 <= 0.08


def test_equal_differences_are_not_certain():
    """Of bounded ones another has a chance of q, (1 - q)^n = 0.025; of others nothing is known."""
    unbounded = difference([0.0, 0.0], [1.0, 1.0])
    assert (unbounded.mean, unbounded.equal, unbounded.decided) == (1, True, False)
    assert (unbounded.low, unbounded.high) == (float("-inf"), float("inf"))
    assert not difference([0.1, 0.2], [0.3, 0.4]).decided  # 0.2 each, but for rounding
    share = difference([0.0, 0.0], [1.0, 1.0], bounds=(0, 1))
    assert (share.low, share.high) == (pytest.approx(1 - 2 * (1 - 0.025**0.5)), 1)
    assert not share.decided
    assert difference([0.0] * 8, [1.0] * 8, bounds=(0, 1)).decided
    same = difference([1.0] * 20, [1.0] * 20, bounds=(0, 1))
    chance = 1 - 0.025 ** (1 / 20)
    assert (same.low, same.high) == (pytest.approx(-chance), pytest.approx(chance))
    # one prompt of a category speaks for half of the mean, so 31 do not count as 31
    lopsided = difference([1.0] * 31, [1.0] * 31, ["a"] + ["b"] * 30, bounds=(0, 1))
    assert lopsided.high > 0.5
