"""The held-out judge: the best LoRA, when to stop, and whether the reward is being hacked."""

import logging
import math
from collections.abc import Sequence
from typing import Any

import torch
from accelerate.utils import broadcast_object_list
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from align.config.checks import read_stop
from align.language.prompts import PromptSet, load_prompts, refuse_reserved, training_prompts
from align.models.lora import save_lora
from align.models.processes import is_first, own_device
from align.rewards import load_judge
from align.rewards.frames import frame_count, frame_terms
from align.rewards.groups import comparing, skips
from align.rewards.provenance import judged_by_reward
from align.rewards.reward import Reward
from align.rewards.score_cache import placed
from align.training.checkpoints import digest_of
from align.training.measures import (
    grid_rises,
    means,
    measure,
    strongest,
    trained_on,
    untrained_features,
)
from align.training.pictures import frames_apart, spread
from align.training.runs import Run
from align.training.seeding import image_seed, seeded

log = logging.getLogger(__name__)
NOISES = 2  # images per prompt, so that their diversity can be told
DIVERSITY_SHARE = 0.8  # of the base's; below it the warning comes
STANDARD_ERRORS = 2.0  # a rise or fall within this many counts as none


class HeldOutJudge:
    """Judges the same held-out images every time; `run.course` keeps the best.

    `everywhere`: all processes measure, not the main one alone. Raises ValueError for prompts that
    are kept for the final measurement, or missing ones.
    """

    def __init__(self, config: Any, everywhere: bool = False):
        assert config.judge is not None  # who makes a judge has one
        prompts = judge_prompts(config)
        rows = spread(len(prompts), max(config.judge_images // NOISES, 1))
        # Only who measures holds the judge's weights.
        measures = everywhere or is_first()
        self.judge = load_judge(config.judge, own_device(config.device)) if measures else None
        if self.judge is not None and any(map(skips, self.judge.functions.values())):
            raise ValueError(
                f"judge {config.judge!r} may skip scores, but compares the same pictures every "
                "time; leave failure=skip out"
            )
        self.prompts, self.metadata = prompts.pick(rows, NOISES)
        device, scenes = own_device(config.device), config.model.startswith("embedded/")
        found = untrained_features(trained_on(config), device, scenes) if measures else None
        self.feature_name, self.features = found or (None, None)
        self.limit = read_stop(config.stop_on) if config.stop_on else None
        self.judged_on = digest_of(prompts)
        self.patience = config.patience
        if warning := not_held_out(config):
            log.warning("warning: %s", warning)

    @torch.no_grad()
    def measure(self, run: Run) -> dict[str, Any]:
        """Judge's and trained reward's scores by prompt, the means over its images, which are not
        independent; and the diversity; of the present model."""
        assert self.judge is not None  # in this process
        seed = run.config.seed
        seeds = [image_seed("judge", seed, 0, i) for i in range(len(self.prompts))]
        images = run.sampler.draw(self.prompts, seeds)
        pictures = images if images.ndim == 4 else images[:, 0]  # of videos, their first frames
        count = frame_count(images, frames_apart(run.config))
        place = placed(run.folder, "judge", run.done, range(count))
        with seeded(image_seed("judge", seed, run.done, 0)), place:
            return {
                "judge": _by_prompt(self._scores(run, self.judge, images)),
                "reward": self._reward(run, images),
                "measures": measure(pictures, NOISES, run.periods, self.features),
                "diversity": diversity(pictures.unflatten(0, (-1, NOISES))),
            }

    def _scores(self, run: Run, by: Reward, images: Tensor) -> Tensor:
        if images.ndim == 4:
            return by(images, self.prompts, self.metadata)
        every = frames_apart(run.config)
        return by.combine(frame_terms(by, images, self.prompts, self.metadata, every))

    def _reward(self, run: Run, images: Tensor) -> list[float]:
        """The trained reward by prompt; none of one that compares images with each other, whose
        mean is the same for every model, or where a server failed."""
        if comparing(run.reward.functions):
            return []
        scores = self._scores(run, run.reward, images)
        return _by_prompt(scores) if scores.isfinite().all() else []

    def __call__(self, run: Run) -> dict[str, Any]:
        """Judge the present model; keep it in `lora-best/` if it is the best so far.

        Returns what goes into the update's record: `judge`, `judge_reward`, `diversity`, `measures`
        against hacking, the `grid` against the base's, and `warning` where the reward looks hacked.
        """
        everyone = run.accelerator.is_main_process or run.sharded
        figures = [self.measure(run) if everyone else None]
        figures = broadcast_object_list(figures)[0]
        assert figures is not None  # the main process has measured
        best = run.course
        best.setdefault("base", figures)
        best.setdefault("judged_on", self.judged_on)
        score = sum(figures["judge"]) / len(figures["judge"])
        if "score" not in best or score > best["score"]:
            best |= {"score": score, "step": run.done, "since": 0}
            if run.accelerator.is_main_process:
                save_lora(run.pipe, run.folder / "lora-best", run.lora_metadata)
        else:
            best["since"] += 1
        record = {
            "judge": score,
            "diversity": figures["diversity"],
        }
        if figures["reward"]:
            record["judge_reward"] = sum(figures["reward"]) / len(figures["reward"])
        record |= self._measures(run, figures)
        if warning := hacking_warning(best["base"], figures):
            record["warning"] = warning
            log.warning("warning: step %d: %s", run.done, warning)
        best["last"] = record | {"step": run.done}
        return record

    def _measures(self, run: Run, figures: dict[str, Any]) -> dict[str, Any]:
        """What the record says of the measures against hacking. Where the grid has risen beyond the
        limit, its interval above 0, the run is over."""
        before = run.course["base"].get("measures")
        if before is None:  # judged by an earlier version
            return {}
        found: dict[str, Any] = {"measures": means(figures["measures"])}
        if self.feature_name:
            run.course["features"] = self.feature_name
        risen = strongest(grid_rises(before, figures["measures"]))
        if risen is None:
            return found
        period, (rise, low, high) = risen
        found["grid"] = {"period": int(period), "rise": rise, "low": low, "high": high}
        if self.limit is not None and rise > self.limit and low > 0:
            run.course["stopped"] = (
                f"stopped at step {run.done}: a grid of {period} pixels has risen by {rise:.3g} "
                f"(interval {low:.3g} to {high:.3g}), more than {self.limit:g}"
            )
            log.warning("warning: %s", run.course["stopped"])
        return found

    def check_resumed(self, run: Run) -> None:
        """Raise ValueError where a resumed run has been judged by other prompts so far."""
        if run.course.get("judged_on", self.judged_on) != self.judged_on:
            raise ValueError(
                f"{run.folder} was judged by other prompts than "
                f"{run.config.judge_prompts or 'the default ones'} now holds; a judge has to "
                "see a run from its start"
            )

    def gave_up(self, run: Run) -> bool:
        """Whether `patience` judgments have passed without a new best, or the grid has risen."""
        if "stopped" in run.course:
            return True
        return self.patience is not None and run.course["since"] >= self.patience

    def is_due(self, run: Run) -> bool:
        """Whether the model as it is has not been judged yet."""
        return run.course.get("last", {}).get("step") != run.done


def not_held_out(config: Any) -> str | None:
    """One sentence where a run's judge is also what it is trained by; None where it is held out."""
    same = judged_by_reward(config) if config.judge else []
    if not same:
        return None
    return (
        f"the judge {' and '.join(same)} is also what the LoRA is trained by, so it is not held "
        "out and says nothing about quality; take another judge"
    )


def _by_prompt(scores: Float[Tensor, " b"]) -> list[float]:
    return scores.unflatten(0, (-1, NOISES)).mean(1).tolist()


def judge_prompts(config: Any) -> PromptSet:
    """The judge's prompts. Raises ValueError where they are missing or reserved."""
    if config.judge_prompts is None and not config.model.startswith("embedded/"):
        raise ValueError(
            f"--judge-prompts is needed with --judge and {config.model}: a file or a built-in set "
            "that is not trained on"
        )
    prompts = load_prompts(config.judge_prompts or "scenes-heldout-a")
    if config.judge_prompts:
        instead = "choose the best LoRA by other prompts, such as scenes-heldout-a"
        refuse_reserved(prompts, "judge_prompts", instead)
    trained_on = training_prompts(config)
    shared = len(set(prompts.prompts) & set(trained_on.prompts))
    if shared:
        log.warning("warning: %d of the judge's prompts are also trained on", shared)
    return prompts


def diversity(images: Float[Tensor, "p n 3 h w"]) -> float:
    """How much the n images of a prompt differ: root mean square distance of all pairs of them,
    averaged to 16 x 16 pixels so that noise does not count, mean over the prompts; in [0, 1]."""
    small = adaptive_avg_pool2d(images.flatten(0, 1), min(16, *images.shape[-2:]))
    small = small.unflatten(0, images.shape[:2]).flatten(2)
    first, second = torch.triu_indices(images.shape[1], images.shape[1], offset=1)
    return (small[:, first] - small[:, second]).square().mean(-1).sqrt().mean().item()


def hacking_warning(base: dict[str, Any], now: dict[str, Any]) -> str | None:
    """One sentence where the trained reward has risen while judge or diversity fell.

    Scores are one a prompt. A rise or fall counts beyond two standard errors of the paired
    differences, a loss of diversity below 80 % of the base's.
    """
    if not (base["reward"] and now["reward"]):
        return None
    rise, fall = paired(base["reward"], now["reward"]), paired(base["judge"], now["judge"])
    if rise[0] <= STANDARD_ERRORS * rise[1]:
        return None
    faults = []
    if fall[0] < -STANDARD_ERRORS * fall[1]:
        faults.append(f"the judge fell by {-fall[0]:.3g}")
    if now["diversity"] < DIVERSITY_SHARE * base["diversity"]:
        share = now["diversity"] / base["diversity"]
        faults.append(f"diversity is {share:.0%} of the base model's")
    if not faults:
        return None
    return f"the reward rose by {rise[0]:.3g} but {' and '.join(faults)}: it may be being hacked"


def paired(before: Sequence[float], after: Sequence[float]) -> tuple[float, float]:
    """Mean and standard error of the differences of two lists of independent values."""
    differences = [b - a for a, b in zip(before, after, strict=True)]
    mean = sum(differences) / len(differences)
    variance = sum((d - mean) ** 2 for d in differences) / max(len(differences) - 1, 1)
    return mean, math.sqrt(variance / len(differences))
