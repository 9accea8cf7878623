"""Means over prompts and their 95 % intervals, by a bootstrap that treats prompts as clusters.

Pictures of one prompt are alike, so prompts are drawn, never pictures. The plain percentile
interval is too short for few prompts, so its quantiles are widened as Hesterberg (2015, "What
teachers should know about the bootstrap", section 5.3, expanded percentile interval) does: by the
n - 1 in the variance and by Student's t, over several categories with Satterthwaite's degrees of
freedom, fewer where values have heavy tails. `scripts/bench/interval_coverage.py` measures the
coverage.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from numpy import ndarray
from scipy import stats

LEVEL = 0.95
DRAWS = 4000


@dataclass(frozen=True)
class Estimate:
    """A mean over prompts with its 95 % interval."""

    mean: float
    low: float
    high: float
    prompts: int

    @property
    def decided(self) -> bool:
        """Whether 0 lies outside the interval; of use for differences."""
        return self.low > 0 or self.high < 0


def estimate(
    values: Sequence[float] | Float[ndarray, " prompts"],
    strata: Sequence[str] | None = None,
    *,
    bounds: tuple[float, float] | None = None,
    seed: int = 0,
) -> Estimate:
    """The mean of one value per prompt, every stratum (category) weighing the same.

    Args:
        values: one value per prompt: the mean over its pictures, or a paired difference.
        strata: the category of each prompt; prompts are drawn within theirs. None: all alike.
        bounds: smallest and largest possible value of a measure; the interval stays inside, and
            where all values are the same it is the Clopper-Pearson interval.
        seed: of the bootstrap.

    Raises:
        ValueError: no values, values that are not finite, or another number of strata.
    """
    values = np.asarray(values, dtype=float)
    if len(values) == 0:
        raise ValueError("there are no values to average; at least one prompt is needed")
    if not np.isfinite(values).all():
        raise ValueError("the values must be finite, got NaN or infinity")
    if strata is not None and len(strata) != len(values):
        raise ValueError(f"got {len(strata)} strata for {len(values)} values; give one each")
    labels = np.array([""] * len(values) if strata is None else strata)
    groups = [values[labels == label] for label in dict.fromkeys(labels.tolist())]
    mean = float(np.mean([group.mean() for group in groups]))
    if len(groups) == len(values):  # one prompt each: the categories' spread has to do
        groups = [values]
    if np.ptp(values) == 0 and (len(values) > 1 or bounds):
        return Estimate(mean, *_without_spread(mean, len(values), bounds), len(values))
    freedom = _degrees_of_freedom(groups)
    if freedom == 0:
        return Estimate(mean, *(bounds or (float("-inf"), float("inf"))), len(values))
    draws = mean + _resampled_errors(groups, np.random.default_rng(seed))
    tail = stats.norm.cdf(stats.t.ppf((1 - LEVEL) / 2, freedom))
    low, high = np.quantile(draws, [tail, 1 - tail]).tolist()
    if bounds is not None:
        low, high = max(low, bounds[0]), min(high, bounds[1])
    return Estimate(mean, low, high, len(values))


def difference(
    first: Sequence[float],
    second: Sequence[float],
    strata: Sequence[str] | None = None,
    *,
    seed: int = 0,
) -> Estimate:
    """`second` minus `first`, paired by prompt. Raises ValueError where their lengths differ."""
    if len(first) != len(second):
        raise ValueError(f"{len(first)} and {len(second)} values; pairs need one of each a prompt")
    return estimate(np.asarray(second, float) - np.asarray(first, float), strata, seed=seed)


def _resampled_errors(
    groups: list[Float[ndarray, " n"]], generator: np.random.Generator
) -> Float[ndarray, " draws"]:
    """Errors of the mean of group means, with the n / (n - 1) that resampling leaves out."""
    errors = np.zeros(DRAWS)
    for group in groups:
        n = len(group)
        if n > 1:
            picks = generator.integers(n, size=(DRAWS, n))
            errors += (n / (n - 1)) ** 0.5 * (group[picks].mean(1) - group.mean())
    return errors / len(groups)


def _degrees_of_freedom(groups: list[Float[ndarray, " n"]]) -> float:
    """Of the variance of the mean of group means, by Welch and Satterthwaite; n - 1 for one group.

    Groups differ in spread, so they tell less of it than all their n - 1 together.
    """
    terms = [
        (group.var(ddof=1) / len(group), _known_variance(group))
        for group in groups
        if np.ptp(group) > 0
    ]
    total = sum(variance for variance, _ in terms)
    return total**2 / sum(variance**2 / free for variance, free in terms) if total else 0.0


def _known_variance(group: Float[ndarray, " n"]) -> float:
    """Degrees of freedom of one group's variance: n - 1 for normal values, fewer for heavy tails,
    from its own relative variance, 2 / (n - 1) + excess kurtosis / n."""
    n, excess = len(group), max(0.0, float(stats.kurtosis(group)))
    return 2 / (2 / (n - 1) + excess / n)


def _without_spread(
    mean: float, prompts: int, bounds: tuple[float, float] | None
) -> tuple[float, float]:
    """The interval where every prompt has the same value: a bootstrap would call it certain.

    For a bounded measure that of Clopper and Pearson, as if each prompt were one trial.
    """
    if bounds is None:
        return mean, mean
    start, width = bounds[0], bounds[1] - bounds[0]
    hits, tail = (mean - start) / width * prompts, (1 - LEVEL) / 2
    low = stats.beta.ppf(tail, hits, prompts - hits + 1) if hits > 0 else 0.0
    high = stats.beta.ppf(1 - tail, hits + 1, prompts - hits) if hits < prompts else 1.0
    return start + width * float(low), start + width * float(high)
