"""`align rewards calibrate`: measure how rewards agree with ratings, category by category."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy import ndarray

from align.config.commands import CalibrateConfig
from align.language.prompts import load_prompts
from align.models.load import torch_device
from align.rewards import load_reward
from align.rewards.groups import pointwise
from align.rewards.trust import (
    agreement_on_other_prompts,
    correlation,
    ordered_pairs,
    weights_by_category,
)
from align.runs.files import atomic_path, write_json
from align.runs.pictures import read_image

COLUMNS = ("image", "prompt", "rating")
RESAMPLES = 500


@dataclass(frozen=True)
class Rated:
    """One rated picture."""

    image: Path
    prompt: str
    category: str
    rating: float


def read_ratings(path: str | Path) -> list[Rated]:
    """Rated pictures from CSV or JSONL with columns image, prompt, rating and category.

    Image paths are relative to the file. Without a category, scenes prompts get their own and
    others "all".

    Raises:
        FileNotFoundError: the file, or a picture it names, is not there.
        ValueError: a column is missing, a rating is no finite number, or there are no rows.
    """
    path = Path(path)
    rows = load_prompts(path)
    rated = []
    for number, (prompt, cells) in enumerate(
        zip(rows.prompts, rows.metadata, strict=True), start=1
    ):
        row = {name.lower(): value for name, value in cells.items()}
        for column in ("image", "rating"):
            if row.get(column) in (None, ""):
                raise ValueError(
                    f"row {number} of {path} has no {column!r}; needed are {', '.join(COLUMNS)}"
                )
        try:
            rating = float(row["rating"])
        except (TypeError, ValueError):
            rating = float("nan")
        if not np.isfinite(rating):
            raise ValueError(
                f"row {number} of {path}: a rating is a finite number, got {row['rating']!r}"
            )
        image = path.parent / str(row["image"])
        if not image.is_file():
            raise FileNotFoundError(f"row {number} of {path}: no picture {image}")
        category = str(row.get("category") or _category(prompt))
        rated.append(Rated(image, prompt, category, rating))
    return rated


def _category(prompt: str) -> str:
    from align.scenes import category

    try:
        return category(prompt)
    except ValueError:
        return "all"


@torch.no_grad()
def score(rated: Sequence[Rated], reward, batch_size: int = 32) -> dict[str, Float[ndarray, " n"]]:
    """The terms of a reward for every rated picture, name -> scores in order."""
    scores: dict[str, list[float]] = {}
    at = 0
    while at < len(rated):
        first = read_image(rated[at].image)
        images = [first]
        while len(images) < batch_size and at + len(images) < len(rated):
            image = read_image(rated[at + len(images)].image)
            if image.shape != first.shape:
                break
            images.append(image)
        prompts = [r.prompt for r in rated[at : at + len(images)]]
        for name, values in reward.terms(torch.stack(images), prompts).items():
            scores.setdefault(name, []).extend(values.tolist())
        at += len(images)
    return {name: np.array(values) for name, values in scores.items()}


def correlations(
    scores: Float[ndarray, " n"],
    ratings: Float[ndarray, " n"],
    groups: Int[ndarray, " n"],
    seed: int = 0,
) -> dict[str, float | list[float] | None]:
    """Spearman, Kendall and within-prompt pairwise accuracy, each with a 95 % bootstrap interval.

    Whole prompts are resampled, as pictures of one prompt are alike. Undefined figures are None.
    """
    rows = [np.flatnonzero(groups == group) for group in np.unique(groups)]
    ordered = np.array([ordered_pairs(scores[r], ratings[r]) for r in rows])

    def figures(picked: ndarray) -> dict[str, float]:
        index = np.concatenate([rows[i] for i in picked])
        right, pairs = ordered[picked].sum(0)
        return {
            "spearman": correlation("spearman", scores[index], ratings[index]),
            "kendall": correlation("kendall", scores[index], ratings[index]),
            "pairwise": right / pairs if pairs else float("nan"),
        }

    rng = np.random.default_rng(seed)
    resampled = [figures(rng.integers(len(rows), size=len(rows))) for _ in range(RESAMPLES)]
    result: dict[str, float | list[float] | None] = {}
    for name, value in figures(np.arange(len(rows))).items():
        known = [drawn[name] for drawn in resampled if not np.isnan(drawn[name])]
        result[name] = None if np.isnan(value) else value
        result[f"{name}_interval"] = np.percentile(known, [2.5, 97.5]).tolist() if known else None
    return result


def calibrate(
    data: str | Path,
    reward: str,
    out: str | Path,
    *,
    ratings: str = "ratings of the data file",
    statistics: dict[str, dict] | None = None,
    device: str | None = None,
    seed: int = 0,
) -> dict:
    """Measure the terms of `reward` against the ratings in `data` and write a table to `out`.

    The table (JSON, see `align.rewards.trust`) holds per category the correlations of every term
    with bootstrap intervals, proposed weights for scores of unit std (0 leaves one out), and that
    proposal's agreement on prompts it was not fitted to, beside uniform weights and the best
    single reward; and the mean and std of each term, for `z(...)`, unless `statistics` of another
    table are given, in whose units the weights then are. A picture of it is written beside it,
    with the suffix .png.

    Raises:
        FileNotFoundError, ValueError: as `read_ratings` and `align.load_reward`.
    """
    rated = read_ratings(data)
    scores = score(rated, pointwise(load_reward(reward, torch_device(device)), "rewards calibrate"))
    names = list(scores)
    columns = np.stack([scores[name] for name in names], axis=1)
    if not np.isfinite(columns).all():
        broken = [n for n, c in zip(names, columns.T, strict=True) if not np.isfinite(c).all()]
        raise ValueError(f"scores of {', '.join(broken)} are not finite; nothing was written")
    values = np.array([r.rating for r in rated])
    prompts = np.unique([r.prompt for r in rated], return_inverse=True)[1]
    table: dict = {"source": str(Path(data).name), "ratings": ratings, "seed": seed}
    table["statistics"] = statistics or {
        name: {"mean": float(column.mean()), "std": float(column.std()), "n": len(rated)}
        for name, column in zip(names, columns.T, strict=True)
        if column.std() > 0
    }
    scaled = columns / [table["statistics"].get(name, {"std": 1.0})["std"] for name in names]
    table["categories"] = {}
    categories = np.array([r.category for r in rated])
    proposed = weights_by_category(scaled, values, prompts, categories)
    honest = agreement_on_other_prompts(scaled, values, prompts, categories, seed)
    for category, weights in proposed.items():
        rows = categories == category
        part = (values[rows], prompts[rows])
        table["categories"][category] = {
            "n": int(rows.sum()),
            "prompts": len(np.unique(prompts[rows])),
            "correlations": {
                name: correlations(columns[rows, i], *part, seed) for i, name in enumerate(names)
            },
            "weights": {n: round(float(w), 4) for n, w in zip(names, weights, strict=True) if w},
            "agreement_on_other_prompts": honest[category],
        }
    write_json(out, table)
    plot_table(table, Path(out).with_suffix(".png"))
    return table


def run(config: CalibrateConfig) -> str:
    """What `align rewards calibrate` does; returns the table as text."""
    if len(config.source) != 1:
        raise ValueError(f"calibrate takes one data file, got {len(config.source)}")
    if not config.reward:
        raise ValueError("--reward is needed: what to measure, such as scenes-clip,scenes-vqa")
    if Path(config.out).exists() and not config.overwrite:
        raise ValueError(f"{config.out} exists; give another --out or --overwrite")
    table = calibrate(
        config.source[0], config.reward, config.out, device=config.device, seed=config.seed
    )
    return table_text(table) + f"\n\nwritten to {config.out}"


def table_text(table: dict) -> str:
    """A table for a terminal: Spearman's rho with its interval, and the proposed weight."""
    lines = []
    for category, entry in table["categories"].items():
        lines.append(f"{category} ({entry['n']} pictures)")
        for name, figures in entry["correlations"].items():
            rho, interval = figures["spearman"], figures["spearman_interval"]
            known = "undefined" if rho is None else f"{rho:+.2f}"
            spread = f" [{interval[0]:+.2f}, {interval[1]:+.2f}]" if interval else ""
            weight = entry["weights"].get(name)
            proposal = f"  weight {weight:.2f}" if weight else ""
            lines.append(f"  {name:<28}{known}{spread}{proposal}")
    return "\n".join(lines)


def plot_table(table: dict, path: Path) -> None:
    """A picture of a table: Spearman's rho by category and reward; weights in brackets."""
    from matplotlib.figure import Figure

    categories = list(table["categories"])
    entries = table["categories"].values()
    names = list(dict.fromkeys(name for entry in entries for name in entry["correlations"]))
    figure = Figure(figsize=(2 + 1.5 * len(names), 1.2 + 0.45 * len(categories)))
    axes = figure.add_subplot()
    values = np.full((len(categories), len(names)), np.nan)
    for i, category in enumerate(categories):
        entry = table["categories"][category]
        for j, name in enumerate(names):
            rho = entry["correlations"].get(name, {}).get("spearman")
            if rho is None:
                continue
            values[i, j] = rho
            weight = entry.get("weights", {}).get(name)
            text = f"{rho:.2f}" + (f"  ({weight:.2f})" if weight else "")
            axes.text(j, i, text, ha="center", va="center", fontsize=9)
    axes.imshow(values, cmap="RdYlGn", vmin=-1, vmax=1, aspect="auto")
    axes.set_xticks(range(len(names)), names)
    axes.set_yticks(range(len(categories)), categories)
    axes.set_title("Spearman's rho with ratings (proposed weight)", fontsize=10)
    figure.tight_layout()
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=120)
