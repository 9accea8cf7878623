"""How far to trust each reward in each category: agreement with ratings, weights, stored tables.

A table is JSON: `categories` -> category -> `correlations` (reward -> figures) and, where a
calibration proposes them, `weights`; `statistics` -> reward -> mean and std, for `z(...)`.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int, Shaped
from numpy import ndarray
from scipy.optimize import minimize
from scipy.special import expit
from scipy.stats import kendalltau, spearmanr

REWARDS = Path(__file__).parent
PUBLISHED = REWARDS / "published.json"
EMBEDDED_TABLE = Path(__file__).parents[1] / "embedded" / "rewards" / "trust.json"
FOLDS = 5
PULL = 1.0  # prompts that the prior of fitted weights counts as
MOST_PAIRS = 200_000  # that are drawn where pictures of different prompts are compared


def read_table(path: str | Path) -> dict:
    """A stored table.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no JSON with `categories` in it.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no weights table {path}")
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is no JSON: {error}") from None
    if not isinstance(table, dict) or not isinstance(table.get("categories"), dict):
        raise ValueError(f"{path} is no weights table: it has no 'categories'")
    return table


def category_weights(table: dict, category: str, rewards: Sequence[str]) -> dict[str, float]:
    """Weights of `rewards` in `category`, >= 0 with mean 1, for scores normalised to unit std.

    The proposed weights where the table has some, else in proportion to positive correlations
    (CARINOX's rule, w = n rho / sum rho); all 1 where the table knows nothing of these rewards.

    Raises:
        ValueError: a category that the table does not have.
    """
    if category not in table["categories"]:
        known = ", ".join(table["categories"])
        raise ValueError(f"the weights table has no category {category!r}: it has {known}")
    entry = table["categories"][category]
    proposed = entry.get("weights", {})
    raw = np.array([max(0.0, proposed.get(name, 0.0)) for name in rewards])
    if raw.sum() == 0:
        figures = [entry["correlations"].get(name, {}) for name in rewards]
        raw = np.array([max(0.0, f.get("spearman") or 0.0) for f in figures])
    if raw.sum() == 0:
        raw = np.ones(len(rewards))
    return dict(zip(rewards, (len(raw) * raw / raw.sum()).tolist(), strict=True))


# --- agreement -----------------------------------------------------------------------------------


def ordered_pairs(scores: Float[ndarray, " n"], ratings: Float[ndarray, " n"]) -> tuple[float, int]:
    """Pairs of unequal ratings that the scores order alike (equal scores count half), and all."""
    ordered = ratings[:, None] > ratings[None, :]
    right = np.sign(scores[:, None] - scores[None, :])[ordered] / 2 + 0.5
    return float(right.sum()), int(ordered.sum())


def pairwise_accuracy(
    scores: Float[ndarray, " n"], ratings: Float[ndarray, " n"], groups: Int[ndarray, " n"]
) -> tuple[float, int]:
    """Share of pairs of one group with unequal ratings that the scores order alike; their number.

    Equal scores count half. NaN where there is no such pair.
    """
    counts = [
        ordered_pairs(scores[groups == group], ratings[groups == group])
        for group in np.unique(groups)
    ]
    right, pairs = sum(r for r, _ in counts), sum(n for _, n in counts)
    return (right / pairs if pairs else float("nan")), pairs


def correlation(kind: str, scores: Float[ndarray, " n"], ratings: Float[ndarray, " n"]) -> float:
    """Spearman's rho or Kendall's tau-b; NaN where one side is constant."""
    if len(scores) < 2 or np.ptp(scores) == 0 or np.ptp(ratings) == 0:
        return float("nan")
    measure = spearmanr if kind == "spearman" else kendalltau
    return float(measure(scores, ratings)[0])  # pyright: ignore[reportArgumentType]


def agreement(
    scores: Float[ndarray, " n"], ratings: Float[ndarray, " n"], groups: Int[ndarray, " n"]
) -> float:
    """What weights are judged by: 2 pairwise accuracy - 1 within prompts, else Spearman's rho.

    Noise search picks among pictures of one prompt, so agreement within prompts is what counts;
    ratings of one picture a prompt leave only the correlation over all. 0 where undefined.
    """
    accuracy, pairs = pairwise_accuracy(scores, ratings, groups)
    value = 2 * accuracy - 1 if pairs else correlation("spearman", scores, ratings)
    return 0.0 if np.isnan(value) else value


# --- proposing weights ---------------------------------------------------------------------------


def pairs_of(
    scores: Float[ndarray, "n rewards"], ratings: Float[ndarray, " n"], groups: Int[ndarray, " n"]
) -> tuple[Float[ndarray, "pairs rewards"], Float[ndarray, " pairs"]]:
    """Score differences of pairs, the better rated minus the other, and each pair's weight.

    Pairs are of one group, whose weights sum to 1. Where every group has one picture only, all are
    compared with a weight of `n`: a random part of the pairs.
    """
    differences, weights = [np.zeros((0, scores.shape[1]))], [np.zeros(0)]
    for group in np.unique(groups):
        rows = np.flatnonzero(groups == group)
        better, worse = np.nonzero(ratings[rows][:, None] > ratings[rows][None, :])
        if len(better):
            differences.append(scores[rows[better]] - scores[rows[worse]])
            weights.append(np.full(len(better), 1 / len(better)))
    if len(np.unique(groups)) == len(groups):
        draw = np.random.default_rng(0).integers(len(ratings), size=(2, MOST_PAIRS))
        better, worse = draw[:, ratings[draw[0]] > ratings[draw[1]]]
        differences.append(scores[better] - scores[worse])
        weights.append(np.full(len(better), len(ratings) / max(1, len(better))))
    return np.concatenate(differences), np.concatenate(weights)


def fit_weights(
    scores: Float[ndarray, "n rewards"],
    ratings: Float[ndarray, " n"],
    groups: Int[ndarray, " n"],
    prior: Float[ndarray, " rewards"] | None = None,
) -> Float[ndarray, " rewards"]:
    """Weights >= 0 whose sum of scores best predicts which of two pictures is rated higher.

    The Bradley-Terry model's likelihood (as reward models are fitted, 2203.02155 eq. 1), a prompt
    counting once, with a pull of PULL prompts towards `prior` (default: 1 each). Unlike weights in
    proportion to agreement these do not count twice what two rewards both say.
    """
    prior = np.ones(scores.shape[1]) if prior is None else prior
    differences, counts = pairs_of(scores, ratings, groups)

    def loss(weights: ndarray) -> tuple[float, ndarray]:
        margins, off = differences @ weights, weights - prior
        value = float(counts @ np.logaddexp(0, -margins) + PULL * off @ off)
        slope = -differences.T @ (counts * expit(-margins)) + 2 * PULL * off
        return value, slope

    return minimize(loss, prior, jac=True, bounds=[(0, None)] * len(prior)).x


def weights_by_category(
    scores: Float[ndarray, "n rewards"],
    ratings: Float[ndarray, " n"],
    groups: Int[ndarray, " n"],
    categories: Shaped[ndarray, " n"],
) -> dict[str, Float[ndarray, " rewards"]]:
    """Weights with mean 1 per category, each pulled to those fitted to all categories together."""
    pooled = fit_weights(scores, ratings, groups)
    fitted = {
        str(name): fit_weights(scores[rows], ratings[rows], groups[rows], pooled)
        for name in dict.fromkeys(categories)
        for rows in [categories == name]
    }
    return {name: _mean_one(weights) for name, weights in fitted.items()}


def _mean_one(weights: Float[ndarray, " rewards"]) -> Float[ndarray, " rewards"]:
    return len(weights) * weights / weights.sum() if weights.sum() > 0 else np.ones(len(weights))


def folds_of(groups: Int[ndarray, " n"], seed: int) -> Int[ndarray, " n"]:
    """A fold per row; rows of one prompt stay together."""
    names = np.unique(groups)
    order = np.random.default_rng(seed).permutation(len(names)) % FOLDS
    return order[np.searchsorted(names, groups)]


def agreement_on_other_prompts(
    scores: Float[ndarray, "n rewards"],
    ratings: Float[ndarray, " n"],
    groups: Int[ndarray, " n"],
    categories: Shaped[ndarray, " n"],
    seed: int = 0,
) -> dict[str, dict[str, float | None]]:
    """category -> agreement of weights (`chosen`) with ratings of prompts that took no part.

    Beside it `uniform` weights and the `best_single` reward, chosen without the fold too. None
    where there are fewer prompts than folds.
    """
    folds, found = folds_of(groups, seed), {str(c): [] for c in dict.fromkeys(categories)}
    for fold in np.unique(folds):
        kept = folds != fold
        if not kept.any():
            continue
        fitted = weights_by_category(scores[kept], ratings[kept], groups[kept], categories[kept])
        for name, weights in fitted.items():
            own = categories == name
            out, used = own & ~kept, own & kept
            if not out.any():
                continue
            alone = [agreement(c[used], ratings[used], groups[used]) for c in scores.T]
            sums = (scores @ weights, scores.sum(1), scores[:, int(np.argmax(alone))])
            found[name].append([agreement(s[out], ratings[out], groups[out]) for s in sums])
    return {
        name: dict(zip(("chosen", "uniform", "best_single"), _means(values), strict=True))
        for name, values in found.items()
    }


def _means(values: list[list[float]]) -> list[float | None]:
    if len(values) < FOLDS:
        return [None, None, None]
    return [float(mean) for mean in np.mean(values, axis=0)]
