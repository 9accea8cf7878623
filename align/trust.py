"""How far to trust each reward in each category: agreement with ratings, weights, stored tables.

A table is JSON: `categories` -> category -> `correlations` (reward -> figures) and, where a
calibration proposes them, `weights`; `statistics` -> reward -> mean and std, for `z(...)`.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray
from scipy.stats import kendalltau, spearmanr

REWARDS = Path(__file__).parent / "rewards"
PUBLISHED = REWARDS / "published.json"
EMBEDDED_TABLE = Path(__file__).parent / "embedded" / "rewards" / "trust.json"
FOLDS = 5
LEAST_GAIN = 0.04  # agreement that a subset must gain before a reward is left out of it


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
    """What weights are chosen by: 2 pairwise accuracy - 1 within prompts, else Spearman's rho.

    Noise search picks among pictures of one prompt, so agreement within prompts is what counts;
    ratings of one picture a prompt leave only the correlation over all. 0 where undefined.
    """
    accuracy, pairs = pairwise_accuracy(scores, ratings, groups)
    value = 2 * accuracy - 1 if pairs else correlation("spearman", scores, ratings)
    return 0.0 if np.isnan(value) else value


# --- proposing a subset and its weights ----------------------------------------------------------


def weigh(
    scores: Float[ndarray, "n rewards"], ratings: Float[ndarray, " n"], groups: Int[ndarray, " n"]
) -> Float[ndarray, " rewards"]:
    """Weights with mean 1 in proportion to each reward's positive agreement."""
    raw = np.array([max(0.0, agreement(column, ratings, groups)) for column in scores.T])
    return len(raw) * raw / raw.sum() if raw.sum() > 0 else np.ones(len(raw))


def folds_of(groups: Int[ndarray, " n"], seed: int) -> Int[ndarray, " n"]:
    """A fold per row; rows of one prompt stay together."""
    names = np.unique(groups)
    order = np.random.default_rng(seed).permutation(len(names)) % FOLDS
    return order[np.searchsorted(names, groups)]


def cross_validated(
    scores: Float[ndarray, "n rewards"],
    ratings: Float[ndarray, " n"],
    groups: Int[ndarray, " n"],
    folds: Int[ndarray, " n"],
) -> float:
    """Mean agreement of the weighted sum on each fold, with weights from the other folds."""
    values = []
    for fold in np.unique(folds):
        out = folds == fold
        weights = weigh(scores[~out], ratings[~out], groups[~out])
        values.append(agreement(scores[out] @ weights, ratings[out], groups[out]))
    return float(np.mean(values))


def choose(
    scores: Float[ndarray, "n rewards"],
    ratings: Float[ndarray, " n"],
    groups: Int[ndarray, " n"],
    seed: int,
) -> list[int]:
    """All columns but those without which the cross-validated weighted sum agrees clearly more.

    Weights in proportion to agreement already quieten a poor reward, so that few prompts are no
    reason to leave one out: starting from the best one and adding lost to uniform weights.
    """
    folds, chosen = folds_of(groups, seed), list(range(scores.shape[1]))
    best = cross_validated(scores, ratings, groups, folds)
    while len(chosen) > 1:
        rests = [[i for i in chosen if i != without] for without in chosen]
        tried = [cross_validated(scores[:, rest], ratings, groups, folds) for rest in rests]
        if max(tried) < best + LEAST_GAIN:
            break
        best, chosen = max(tried), rests[int(np.argmax(tried))]
    return chosen


def propose(
    scores: Float[ndarray, "n rewards"],
    ratings: Float[ndarray, " n"],
    groups: Int[ndarray, " n"],
    seed: int = 0,
) -> tuple[Float[ndarray, " rewards"], dict[str, float | None]]:
    """Weights per reward (0 outside the chosen subset) and honest figures for the choice.

    The figures are agreements on prompts that took no part: `chosen` repeats the whole choice,
    subset included, without each fold in turn; `uniform` and `best_single` are for comparison
    (the single one, too, is chosen without the fold).

    Args:
        scores: normalised to unit std, so that weights compare.
        groups: the prompt of each row, as an integer.
    """
    subset = choose(scores, ratings, groups, seed)
    weights = np.zeros(scores.shape[1])
    weights[subset] = weigh(scores[:, subset], ratings, groups)
    if len(np.unique(groups)) < FOLDS:
        return weights, {"chosen": None, "uniform": None, "best_single": None}
    folds = folds_of(groups, seed + 1)
    found: dict[str, list[float]] = {"chosen": [], "uniform": [], "best_single": []}
    for fold in np.unique(folds):
        out = folds == fold
        kept = (scores[~out], ratings[~out], groups[~out])
        inner = choose(*kept, seed)
        single = int(np.argmax([agreement(c, *kept[1:]) for c in kept[0].T]))
        sums = {
            "chosen": scores[out][:, inner] @ weigh(kept[0][:, inner], *kept[1:]),
            "uniform": scores[out].sum(1),
            "best_single": scores[out][:, single],
        }
        for name, total in sums.items():
            found[name].append(agreement(total, ratings[out], groups[out]))
    return weights, {name: float(np.mean(values)) for name, values in found.items()}
