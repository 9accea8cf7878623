"""Means over prompts and their 95 % intervals, by a bootstrap that treats prompts as clusters.

Pictures of one prompt are alike, so prompts are drawn, never pictures. The plain percentile
interval is too short for few prompts, so its quantiles are widened as Hesterberg (2015, "What
teachers should know about the bootstrap", section 5.3, expanded percentile interval) does: by the
n - 1 in the variance and by Student's t, over several categories with Satterthwaite's degrees of
freedom, fewer where values have heavy tails. Below 4 degrees of freedom such a quantile lies beyond
all resamples, and Student's interval itself is taken.

A spread that cannot be seen does not count as none. A category of one prompt takes that of all
prompts together, which holds the differences between categories too and so is rather too wide; a
category whose prompts all have the same share takes a part of it; the interval is Student's then.
Where all prompts have the same value there is an interval for a bounded measure only.
`scripts/bench/interval_coverage.py` measures the coverage.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Shaped
from numpy import ndarray
from scipy import stats

LEVEL = 0.95
DRAWS = 4000
BOUNDS = {"exact": (0.0, 1.0), "partial": (0.0, 1.0)}  # of measures that are shares
LEAST_FREEDOM = 4.0


@dataclass(frozen=True)
class Estimate:
    """A mean over prompts with its 95 % interval."""

    mean: float
    low: float
    high: float
    prompts: int
    equal: bool = False
    """Whether all prompts have the same value, so that their spread tells nothing."""

    @property
    def decided(self) -> bool:
        """Whether 0 lies outside the interval; of use for differences."""
        return self.low > 0 or self.high < 0


def estimate(
    values: Sequence[float] | Shaped[ndarray, " prompts"],
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
            where all values are the same it is the Clopper-Pearson interval. Without bounds it is
            infinite there: nothing is known of the spread.
        seed: of the bootstrap.

    Raises:
        ValueError: no values, values that are not finite, or another number of strata.
    """
    return _estimate(values, strata, bounds, seed, _clopper_pearson)


def difference(
    first: Sequence[float] | Shaped[ndarray, " prompts"],
    second: Sequence[float] | Shaped[ndarray, " prompts"],
    strata: Sequence[str] | None = None,
    *,
    bounds: tuple[float, float] | None = None,
    seed: int = 0,
) -> Estimate:
    """`second` minus `first`, paired by prompt; `bounds` are those of the measure itself.

    Where all differences are the same, another one may yet have a chance of up to q with
    (1 - q)^prompts = 0.025; that and the bounds limit the mean, without bounds nothing does.

    Raises ValueError where their lengths differ.
    """
    if len(first) != len(second):
        raise ValueError(f"{len(first)} and {len(second)} values; pairs need one of each a prompt")
    if bounds is not None:
        bounds = (bounds[0] - bounds[1], bounds[1] - bounds[0])
    before, after = np.asarray(first, float), np.asarray(second, float)
    # equal differences have to come out equal, whatever rounding does to them
    grain = 1e-12 * max(np.abs([*before, *after, 0.0]).max(), 1e-300)
    rises = np.round((after - before) / grain) * grain
    return _estimate(rises, strata, bounds, seed, _unseen_others)


def _estimate(
    values: Sequence[float] | Shaped[ndarray, " prompts"],
    strata: Sequence[str] | None,
    bounds: tuple[float, float] | None,
    seed: int,
    without_spread: Callable[[float, float, tuple[float, float]], tuple[float, float]],
) -> Estimate:
    """`estimate`; `without_spread(value, prompts, bounds)` is the interval of equal values."""
    values = np.asarray(values, dtype=float)
    if len(values) == 0:
        raise ValueError("there are no values to average; at least one prompt is needed")
    if not np.isfinite(values).all():
        raise ValueError("the values must be finite, got NaN or infinity")
    if strata is not None and len(strata) != len(values):
        raise ValueError(f"got {len(strata)} strata for {len(values)} values; give one each")
    labels = np.array([""] * len(values) if strata is None else strata)
    groups = [values[labels == label] for label in dict.fromkeys(labels.tolist())]
    mean, count = float(np.mean([group.mean() for group in groups])), len(values)
    if np.ptp(values) == 0:
        low, high = float("-inf"), float("inf")
        if bounds is not None:
            # as many prompts as would say so much if they weighed the same
            effective = len(groups) ** 2 / sum(1 / len(group) for group in groups)
            low, high = without_spread(mean, effective, bounds)
        return Estimate(mean, low, high, count, equal=True)
    own = [group for group in groups if np.ptp(group) > 0]
    borrowed = _borrowed_variance(groups, values, bounds)
    terms = [(group.var(ddof=1) / len(group), _known_variance(group)) for group in own]
    terms += [(borrowed, _known_variance(values))] if borrowed else []
    freedom = _degrees_of_freedom(terms)
    quantile = float(stats.t.ppf((1 - LEVEL) / 2, freedom))
    if borrowed or freedom < LEAST_FREEDOM:
        error = sum(variance for variance, _ in terms) ** 0.5 / len(groups)
        low, high = mean + quantile * error, mean - quantile * error
    else:
        tail = float(stats.norm.cdf(quantile))
        draws = mean + _resampled_errors(groups, np.random.default_rng(seed))
        low, high = np.quantile(draws, [tail, 1 - tail]).tolist()
    if bounds is not None:
        low, high = max(low, bounds[0]), min(high, bounds[1])
    return Estimate(mean, float(low), float(high), count)


def _resampled_errors(
    groups: Sequence[Float[ndarray, " _"]], generator: np.random.Generator
) -> Float[ndarray, " draws"]:
    """Errors of the mean of group means, with the n / (n - 1) that resampling leaves out."""
    errors = np.zeros(DRAWS)
    for group in groups:
        n = len(group)
        picks = generator.integers(n, size=(DRAWS, n))
        errors += (n / (n - 1)) ** 0.5 * (group[picks].mean(1) - group.mean())
    return errors / len(groups)


def _borrowed_variance(
    groups: Sequence[Float[ndarray, " _"]],
    values: Float[ndarray, " prompts"],
    bounds: tuple[float, float] | None,
) -> float:
    """Variance of the sum of the means of those categories that show no spread of their own.

    Each takes that of all prompts, n equal values counting as n - 1 degrees of freedom against
    two of it; of a share at least a deviation of a quarter of its range, as one prompt of hits and
    misses is either. Three equal values of a reward, which are no accident, are believed.
    """
    every = bounds is not None or not any(np.ptp(group) > 0 for group in groups)
    sizes = [len(g) for g in groups if np.ptp(g) == 0 and (every or len(g) < 3)]
    least = 0.0 if bounds is None else ((bounds[1] - bounds[0]) / 4) ** 2
    return max(float(values.var(ddof=1)), least) * sum(2 / (n + 1) / n for n in sizes)


def _degrees_of_freedom(terms: Sequence[tuple[float, float]]) -> float:
    """Of a sum of (variance, its own degrees of freedom), by Welch and Satterthwaite.

    Groups differ in spread, so they tell less of it than all their n - 1 together.
    """
    total = sum(variance for variance, _ in terms)
    return total**2 / sum(variance**2 / free for variance, free in terms)


def _known_variance(group: Float[ndarray, " n"]) -> float:
    """Degrees of freedom of one group's variance: n - 1 for normal values, fewer for heavy tails,
    from its own relative variance, 2 / (n - 1) + excess kurtosis / n."""
    n, excess = len(group), max(0.0, float(stats.kurtosis(group)))
    return 2 / (2 / (n - 1) + excess / n)


def _clopper_pearson(
    value: float, prompts: float, bounds: tuple[float, float]
) -> tuple[float, float]:
    """The interval where every prompt has the same value, as if each were one trial: a bootstrap
    would call it certain."""
    start, width = bounds[0], bounds[1] - bounds[0]
    hits, tail = (value - start) / width * prompts, (1 - LEVEL) / 2
    low = stats.beta.ppf(tail, hits, prompts - hits + 1) if hits > 0 else 0.0
    high = stats.beta.ppf(1 - tail, hits + 1, prompts - hits) if hits < prompts else 1.0
    return start + width * float(low), start + width * float(high)


def _unseen_others(
    value: float, prompts: float, bounds: tuple[float, float]
) -> tuple[float, float]:
    """The interval where every prompt has the same value and others, unseen, have a chance q."""
    chance = 1 - ((1 - LEVEL) / 2) ** (1 / prompts)
    return value - chance * (value - bounds[0]), value + chance * (bounds[1] - value)
