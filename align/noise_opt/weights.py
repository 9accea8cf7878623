"""How much each term of the reward counts for a prompt: its category and a calibration table.

A table (`align rewards calibrate`, or the shipped ones) says how each reward agrees with ratings,
category by category. With `weights="category"` the objective is

    sum_i  lambda_i * w_i * (R_i - mean_i) / std_i,    w = sum_c share_c * w_c + unknown * 1

where lambda are the expression's own weights, w_c the table's (mean 1), and mean, std the table's
statistics. Without statistics of every term the scores stay as they are; without a category, or
for rewards that the table does not know, w is 1.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from align.language.categories import CATEGORIES, Guess, classify
from align.noise_opt.objective import Objective, Part, parts_of
from align.rewards.expression import Term
from align.rewards.reward import Reward
from align.rewards.trust import EMBEDDED_TABLE, PUBLISHED, category_weights, read_table

# Rows that stand in for categories a table may lack.
NEAREST = {"single": "color", "emotion": "non_spatial", "size": "shape"}


@dataclass(frozen=True)
class Weighing:
    """An objective for one prompt, and why it is weighted so."""

    objective: Objective
    guess: Guess
    sentences: tuple[str, ...]

    def text(self, prompt: str) -> str:
        """What `--explain` prints."""
        parts = [
            f"  {part.name:<28} weight {part.weight:8.4f}"
            + (f" of ({part.name} - {part.mean:.4g}) / {part.std:.4g}" if part.std != 1 else "")
            + ("" if part.differentiable else "  (no gradient: screens and selects)")
            for part in self.objective.parts
        ]
        return "\n".join([prompt, *(f"  {line}" for line in self.sentences), *parts])


def weigh(reward: Reward, prompt: str, weights: str, category: str | None = None) -> Weighing:
    """The objective of a prompt. `weights`: category, uniform or a table's path.

    Raises FileNotFoundError or ValueError for a table that is missing or none, ValueError for a
    category that no table has.
    """
    parts = parts_of(reward)
    if weights == "uniform":
        guess = Guess({}, "weights are uniform")
        return Weighing(Objective(reward, parts), guess, ("weights: the expression's own",))
    table = read_table(weights) if weights != "category" else _shipped_table(parts)
    guess = classify(prompt) if category is None else Guess({category: 1.0}, "it was given")
    if category is not None and category not in (*CATEGORIES, *table["categories"]):
        known = ", ".join(dict.fromkeys([*CATEGORIES, *table["categories"]]))
        raise ValueError(f"category is {category!r}; it must be one of {known}")
    shares = ", ".join(f"{name} {share:.0%}" for name, share in guess.shares.items())
    lines = [f"category: {shares or 'unknown'} ({guess.why})"]
    if len(parts) == 1 or not all(isinstance(part.expression, Term) for part in parts):
        why = (
            "there is one term" if len(parts) == 1 else "min, product and rank are no single terms"
        )
        return Weighing(Objective(reward, parts), guess, (*lines, f"weights: uniform, as {why}"))
    names = [part.name for part in parts]
    mixed, rest = dict.fromkeys(names, 0.0), guess.unknown
    for name, share in guess.shares.items():
        row = name if name in table["categories"] else NEAREST.get(name, "")
        if row not in table["categories"]:
            rest += share
            continue
        for term, weight in category_weights(table, row, names).items():
            mixed[term] += share * weight
    weighted = [
        replace(part, weight=part.weight * (mixed[part.name] + rest), **_scale(table, parts, part))
        for part in parts
    ]
    source = table.get("ratings") or table.get("source") or "a table"
    lines.append(f"weights: by agreement with {source}" + f"; {rest:.0%} uniform" * (rest > 0))
    return Weighing(Objective(reward, tuple(weighted)), guess, tuple(lines))


def _shipped_table(parts: Sequence[Part]) -> dict:
    """The shipped table that knows more of these terms: of the embedded world, or published."""
    tables = [read_table(path) for path in (EMBEDDED_TABLE, PUBLISHED) if path.is_file()]

    def known(table: dict) -> int:
        rows = [entry["correlations"] for entry in table["categories"].values()]
        return sum(any(part.name in row for row in rows) for part in parts)

    return max(tables, key=known)


def _scale(table: dict, parts: Sequence[Part], part: Part) -> dict[str, float]:
    """Mean and std that normalize a term, where the table has them for all the terms."""
    stored = table.get("statistics", {})
    if any(one.name not in stored for one in parts) or part.std != 1 or part.mean != 0:
        return {}
    return {"mean": float(stored[part.name]["mean"]), "std": float(stored[part.name]["std"])}
