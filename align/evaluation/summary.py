"""From the records of all prompts to the figures of report.json."""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from align.evaluation.diversity import MEASURES, feature_diversity, scene_diversity
from align.evaluation.quality import (
    Features,
    clip_features,
    cmmd,
    frechet,
    in_batches,
    nearest_distance,
    real_pictures,
    scenes_features,
    training_pictures,
    true_scenes,
)
from align.evaluation.run import Plan
from align.evaluation.spending import QUIET_LOAD
from align.evaluation.statistics import BOUNDS, Estimate, difference, estimate
from align.rewards.identity import terms_of
from align.runs.folder import describe_run
from align.runs.pictures import read_image
from align.training.measures import grid_rises, means, measure, strongest, untrained_features

TRUE_SCENES = 900  # renders that stand for the real pictures of the scenes world
PERIODS = (8, 16)  # of grids: an autoencoder's cell, and a patch of two
TRUE_NEAREST = 200  # of which as many show how far a new true picture lies from the training ones

Records = Sequence[dict[str, Any]]


def summarize(plan: Plan, records: Records) -> dict[str, Any]:
    """What report.json holds."""
    measures = measure_names(plan, records)
    keys = [
        (method.label, None if budget is None else str(budget))
        for method in plan.methods
        for budget in plan.budgets
    ]
    table = {key: per_prompt(records, *key, measures) for key in keys}
    strata = [record["category"] for record in records]
    loads = [record["load"] for record in records]
    # under another name too
    found = plan.judges.optimized_among(measures)
    optimized = list(dict.fromkeys([*plan.judges.optimized, *found]))
    held_out = [name for name in measures if name not in optimized]
    extras = _Extras(plan, records)
    return {
        "warning": plan.judges.warning,
        "judge": plan.judges.expression,
        "main": measures[0],
        "measures": measures,
        "optimized": optimized,
        "held_out": [name for name in held_out if name not in (*BOUNDS, "judge")],
        "prompts": len(records),
        "categories": {name: strata.count(name) for name in dict.fromkeys(strata)},
        "repeats": plan.repeats,
        "load": {"before": plan.load, "mean": float(np.mean(loads)), "quiet": QUIET_LOAD},
        "figures": [
            {
                "method": method,
                "budget": budget,
                "overall": _estimates(table[method, budget], strata),
                "categories": {
                    name: _estimates(table[method, budget], strata, only=name)
                    for name in dict.fromkeys(strata)
                },
                "spent": mean_spent(records, method, budget),
                **extras.figures(method, budget),
            }
            for method, budget in keys
        ],
        "references": extras.references(),
        "differences": _against_first(plan, table, strata, measures),
        "steps": _between_budgets(plan, table, strata, measures[0]),
        "run": describe_run(plan.config, plan.command),
    }


def measure_names(plan: Plan, records: Records) -> list[str]:
    """What is reported, the main measure first, then the rewards, optimized ones first."""
    scores = records[0]["results"][0]["scores"]
    names = ["exact", "partial"] if plan.judges.scenes else []
    if terms_of(plan.judges.expression) == ["verifier-partial"]:
        names = ["partial", "exact"]
    elif terms_of(plan.judges.expression) != ["verifier"]:
        names = ["judge", *names]
    rest = [name for name in scores if name not in (*names, "objects", "judge", *BOUNDS)]
    optimized = plan.judges.optimized_among(rest)
    return names + optimized + [name for name in rest if name not in optimized]


def results_of(record: dict[str, Any], method: str, budget: str | None) -> list[dict[str, Any]]:
    """A prompt's pictures by one method at one budget."""
    wanted = (method, budget)
    return [one for one in record["results"] if (one["method"], one["budget"]) == wanted]


def per_prompt(
    records: Records, method: str, budget: str | None, measures: Sequence[str]
) -> dict[str, Float[np.ndarray, " prompts"]]:
    """Each measure's mean over the pictures of a prompt, prompt by prompt."""
    pictures = [results_of(record, method, budget) for record in records]
    return {
        name: np.array([np.mean([one["scores"][name] for one in mine]) for mine in pictures])
        for name in measures
    }


def mean_spent(records: Records, method: str, budget: str | None) -> dict[str, float]:
    """What a picture cost, mean over all."""
    spent = [one["spent"] for record in records for one in results_of(record, method, budget)]
    return {name: float(np.mean([one[name] for one in spent])) for name in spent[0]}


def as_dict(one: Estimate) -> dict[str, Any]:
    """An estimate as report.json has it."""
    return dataclasses.asdict(one)


def _estimates(
    values: dict[str, np.ndarray], strata: Sequence[str], only: str | None = None
) -> dict[str, Any]:
    rows = np.array([only in (None, name) for name in strata])
    labels = [name for name in strata if only in (None, name)]
    return {
        name: as_dict(estimate(column[rows], labels, bounds=BOUNDS.get(name)))
        for name, column in values.items()
    }


def _against_first(
    plan: Plan, table: dict[Any, Any], strata: list[str], measures: Sequence[str]
) -> list[dict[str, Any]]:
    """Every method minus the first one at the same budget, paired by prompt."""
    rows = []
    first = plan.methods[0].label
    for budget in (None if one is None else str(one) for one in plan.budgets):
        for method in plan.methods[1:]:
            for name in measures:
                pair = (table[first, budget][name], table[method.label, budget][name])
                row = {"method": method.label, "against": first, "budget": budget, "measure": name}
                rows.append(row | as_dict(difference(*pair, strata, bounds=BOUNDS.get(name))))
    return rows


def _between_budgets(
    plan: Plan, table: dict[Any, Any], strata: list[str], measure: str
) -> list[dict[str, Any]]:
    """What each larger budget adds to the next smaller one, for the methods that search."""
    rows = []
    budgets = [None if one is None else str(one) for one in plan.budgets]
    for method in (one for one in plan.methods if one.searches):
        for small, large in itertools.pairwise(budgets):
            pair = (table[method.label, small][measure], table[method.label, large][measure])
            row = {"method": method.label, "from": small, "to": large, "measure": measure}
            rows.append(row | as_dict(difference(*pair, strata, bounds=BOUNDS.get(measure))))
    return rows


class _Extras:
    """Diversity, quality and the nearest training picture; references are loaded once."""

    def __init__(self, plan: Plan, records: Records):
        self.plan, self.records = plan, records
        self.scenes = plan.judges.scenes
        self.features, self.kind = _feature_network(plan)
        self.real: Tensor | None = None
        self.training: Tensor | None = None
        self.first: dict[str | None, dict[str, Any]] = {}
        self.untrained = untrained_features(plan.judges.optimized, plan.config.device, self.scenes)
        prompts = [record["prompt"] for record in records]
        if self.features and (self.scenes or plan.config.real):
            real = (
                real_pictures(plan.config.real)
                if plan.config.real
                else true_scenes(prompts, TRUE_SCENES, 0)
            )
            self.real = in_batches(self.features, real)
        if self.scenes and plan.config.model.startswith("embedded/"):
            self.training = training_pictures()

    def figures(self, method: str, budget: str | None) -> dict[str, Any]:
        """What one method at one budget gets."""
        groups = [results_of(record, method, budget) for record in self.records]
        folder = self.plan.folder
        images = [[read_image(folder / one["image"]) for one in group] for group in groups]
        every = [image for group in images for image in group]
        found: dict[str, Any] = {}
        made = in_batches(self.features, every) if self.features else None
        diversity = self._diversity(groups, made)
        if diversity:
            found["diversity"] = diversity
        if self.real is not None and made is not None and len(made) > 1:
            found["quality"] = {
                "cmmd": cmmd(self.real, made),
                "frechet": frechet(self.real, made),
                "pictures": len(made),
            }
        if self.training is not None:
            found["nearest"] = _nearest(every, self.training)
        if hacking := self._hacking(every, budget):
            found["hacking"] = hacking
        return found

    def _hacking(self, images: list[Tensor], budget: str | None) -> dict[str, Any] | None:
        """The measures against hacking, and the grid against that of the first method; None for
        pictures of several sizes."""
        if len({image.shape for image in images}) > 1:
            return None
        features = self.untrained[1] if self.untrained else None
        found = measure(images, self.plan.repeats, PERIODS, features)
        first = self.first.setdefault(budget, found)
        risen = strongest(grid_rises(first, found)) if found is not first else None
        grid = risen and dict(
            zip(("period", "rise", "low", "high"), (int(risen[0]), *risen[1]), strict=True)
        )
        return {"means": means(found), "grid": grid}

    def references(self) -> dict[str, Any]:
        """What true pictures get, to read the figures by."""
        untrained = self.untrained[0] if self.untrained else None
        found: dict[str, Any] = {"features": self.kind, "vendi": untrained}
        prompts = [record["prompt"] for record in self.records]
        count = len(self.records) * self.plan.repeats
        if self.scenes and self.real is not None and self.features and count > 1:
            true = in_batches(self.features, true_scenes(prompts, count, 1))
            found["quality"] = {"cmmd": cmmd(self.real, true), "frechet": frechet(self.real, true)}
        if self.training is not None:
            found["nearest"] = _nearest(true_scenes(prompts, TRUE_NEAREST, 2), self.training)
        return found

    def _diversity(self, groups: list[list[dict]], made: Tensor | None) -> dict[str, Any] | None:
        """Means over prompts, with intervals; None where no prompt has two pictures that count."""
        if self.scenes:
            rows = [
                scene_diversity(
                    record["prompt"],
                    [one["scores"]["objects"] for one in group if one["scores"]["exact"] == 1],
                )
                for record, group in zip(self.records, groups, strict=True)
            ]
            names = [*MEASURES]
        else:
            if made is None or self.plan.repeats < 2:
                return None
            rows = [{"features": feature_diversity(part)} for part in made.split(self.plan.repeats)]
            names = ["features"]
        values = {name: [row[name] for row in rows if row and name in row] for name in names}
        return {name: as_dict(estimate(v)) for name, v in values.items() if v} or None


def _feature_network(plan: Plan) -> tuple[Features | None, str | None]:
    """The network whose features measure quality (and diversity), and its name."""
    config = plan.config
    if config.clip:
        return clip_features(config.clip, config.device), config.clip
    if plan.judges.scenes:
        return scenes_features(config.device), "scenes-clip"
    return None, None


@torch.no_grad()
def _nearest(images: Sequence[Tensor], training: Tensor) -> dict[str, float]:
    apart = nearest_distance(images, training)
    return {"mean": apart.mean().item(), "least": apart.min().item()}
