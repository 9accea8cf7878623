"""Who judges, who was optimized, and what every picture scores."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from align.config.evaluate import EvaluationConfig
from align.evaluation.methods import Method
from align.language.prompts import PromptSet
from align.models.load import torch_device
from align.rewards import load_judge, load_reward, parse_expression
from align.rewards.catalogue import SERVERS
from align.rewards.identity import shared, terms_of
from align.rewards.provenance import choosing_terms, trained_terms
from align.rewards.provenance import trained_reward as trained_reward
from align.rewards.reward import Reward

SHARES = ("exact", "partial")
VERIFIER = ("verifier", "verifier-partial")
SCENES_REWARDS = "scenes-detector,scenes-clip,scenes-vqa,scenes-preference"


@dataclass(frozen=True)
class Judges:
    """Everything that scores pictures, the optimized rewards included."""

    expression: str
    """The judge's."""
    judge: Reward
    optimized: tuple[str, ...]
    """Terms that a method was trained on or searches by."""
    others: Reward | None
    """Further rewards to report: optimized and held-out ones."""
    scenes: bool
    """Whether the verifier can read prompts and pictures."""

    chosen: tuple[str, ...] = ()
    """Terms of the judges that chose a `lora-best` which is judged here."""

    @property
    def warning(self) -> str | None:
        """What makes the judge's figures too good, where a judge is also an optimized reward or
        chose what is judged."""
        judges = terms_of(self.expression)
        optimized = shared(judges, self.optimized)
        verb = "is" if len(optimized) == 1 else "are"
        lines = [
            f"Warning: the judge {' and '.join(optimized)} {verb} also what methods here were "
            "optimized for, so these figures say nothing about quality; take another judge."
        ] * bool(optimized)
        chosen = [name for name in shared(judges, self.chosen) if name not in optimized]
        lines += [
            f"Warning: a lora-best here was chosen by the judge {' and '.join(chosen)} itself, so "
            "its figures are rather too high; take another judge or the run's last LoRA."
        ] * bool(chosen)
        return " ".join(lines) or None

    def optimized_among(self, measures: Sequence[str]) -> list[str]:
        """Those of the measures that load what was optimized, however they are written."""
        rewards = [name for name in measures if name not in (*SHARES, "judge")]
        return shared(rewards, self.optimized)


def optimized_terms(config: EvaluationConfig, methods: Sequence[Method]) -> tuple[str, ...]:
    """The rewards that the methods search by, and those that their LoRAs and models were trained
    on, in the runs that these started from too."""
    names = []
    if config.reward and any(method.searches for method in methods):
        names += terms_of(config.reward)
    return tuple(dict.fromkeys([*names, *trained_terms(_sources(config, methods))]))


def _sources(config: EvaluationConfig, methods: Sequence[Method]) -> list[str]:
    """LoRAs and models that pictures are made with."""
    loras = [lora for method in methods for lora in method.loras]
    models = [config.model, *(method.nar for method in methods if method.nar)]
    return list(dict.fromkeys([*config.lora, *loras, *models]))


def load_judges(
    config: EvaluationConfig,
    prompts: PromptSet,
    methods: Sequence[Method],
    size: tuple[int, int],
) -> Judges:
    """The judge and the rewards to report beside it.

    Raises ValueError where no judge fits the prompts, or the one named does not.
    """
    expression, scenes = judge_expression(config.judge, prompts, size)
    optimized = optimized_terms(config, methods)
    also = config.also or (SCENES_REWARDS if scenes else None)
    if config.also and parse_expression(config.also).kind_within("rank"):
        raise ValueError(
            f"--also takes scores of single images, and {config.also} compares those of a prompt; "
            "name the reward in rank(...) itself"
        )
    named = terms_of(",".join(one for one in (config.reward, also) if one) or "verifier")
    # Servers that a LoRA was trained by are asked where somebody names them alone.
    known = [one for one in optimized if one in named or one.partition(":")[0] not in SERVERS]
    names = [*known, *(terms_of(also) if also else [])]
    others = ",".join(dict.fromkeys(name for name in names if name not in VERIFIER))
    device = torch_device(config.device)
    return Judges(
        expression=expression,
        judge=load_judge(expression, device),
        optimized=optimized,
        others=load_reward(others, device).alone() if others else None,
        scenes=scenes,
        chosen=tuple(choosing_terms(_sources(config, methods))),
    )


def judge_expression(
    judge: str | None, prompts: PromptSet, size: tuple[int, int]
) -> tuple[str, bool]:
    """The judge named or else the verifier, and whether the verifier can read the prompts and
    pictures of this height and width.

    Raises ValueError where no judge fits, or the one named does not.
    """
    unread = next((p for p in prompts.prompts if _fault(p)), None)
    scenes = unread is None and size == (64, 64)
    if judge is None and not scenes:
        raise ValueError(f"no judge fits {prompts.name}; give --judge, a reward expression")
    expression = judge or "verifier"
    verifies = [name for name in terms_of(expression) if name in VERIFIER]
    if verifies and not scenes:
        fault = f"prompt {unread!r}" if unread else f"pictures of {size[1]}x{size[0]}"
        raise ValueError(
            f"judge {verifies[0]!r} reads scenes prompts and 64x64 pictures only, not {fault}; "
            "give another --judge"
        )
    return expression, scenes


def _fault(prompt: str) -> str | None:
    from align.scenes import parse

    try:
        parse(prompt)
    except ValueError as error:
        return str(error)
    return None


@torch.no_grad()
def judge_images(
    judges: Judges, images: Float[Tensor, "b 3 h w"], prompt: str, metadata: dict[str, Any]
) -> list[dict[str, Any]]:
    """What each picture scores: `judge`, `exact`, `partial` (scenes), every reward by name, and
    in the scenes world the `objects` that the verifier reads in it."""
    prompts, rows = [prompt] * len(images), [metadata] * len(images)
    records: list[dict[str, Any]] = [{} for _ in prompts]
    names = terms_of(judges.expression)
    terms: dict[str, Tensor] = {}
    if judges.scenes:
        readings = [read_scene(prompt, image) for image in images]
        for record, reading in zip(records, readings, strict=True):
            record |= reading
        exact, partial = (torch.tensor([r[key] for r in readings]) for key in ("exact", "partial"))
        terms = dict(zip(VERIFIER, (exact, partial), strict=True))
    if set(names) <= set(terms):
        total = judges.judge.combine(terms)
    else:
        mine = judges.judge.terms(images, prompts, rows)
        total = judges.judge.combine(mine)
        if len(mine) > 1:
            _record(records, {k: v for k, v in mine.items() if k not in VERIFIER})
    _record(records, {"judge": total})
    if judges.others is not None:
        _record(records, judges.others.terms(images, prompts, rows))
    return records


def _record(records: list[dict[str, Any]], scores: dict[str, Tensor]) -> None:
    for name, values in scores.items():
        for record, value in zip(records, values.tolist(), strict=True):
            record[name] = round(value, 5)


def read_scene(prompt: str, image: Float[Tensor, "3 64 64"]) -> dict[str, Any]:
    """One reading of a scenes picture: exact, partial, and the objects as plain values."""
    from align.scenes import parse, read
    from align.scenes.verifier import check

    scene = parse(prompt)
    seen = read(image.float().cpu().numpy())
    facts = check(scene, seen)
    keys = ("color", "shape", "texture", "size", "x", "y", "r")
    return {
        "exact": float(all(facts) and len(seen) == len(scene.objects)),
        "partial": round(sum(facts) / len(facts), 5),
        "objects": [{key: _short(getattr(one, key)) for key in keys} for one in seen],
    }


def _short(value: Any) -> Any:
    return round(value, 2) if isinstance(value, float) else value
