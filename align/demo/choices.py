"""What a visitor may choose: models, LoRAs and rewards, listed for the page and checked here.

Nothing that a browser sends is trusted: without `--allow-any-model` only what is listed is taken.
"""

import functools
import json
from pathlib import Path
from typing import Any

import align
from align.config.checks import one_of
from align.demo import values
from align.rewards.catalogue import SCENES_REWARD

EMBEDDED = Path(align.__file__).parent / "embedded"
RUNS = Path("runs")
NO_LORA = ""
LORAS_LISTED = 50
REWARD_LENGTH = 300  # characters
DEFAULTS = {"embedded": (25, 3.0), "turbo": (1, 1.0), "other": (30, 7.5)}  # steps, guidance
NAR_DEFAULTS = (2.0, 0.7)  # guidance, temperature


def models() -> list[str]:
    """The text-to-image pipelines that ship with the package, those of many steps first."""
    names = [name for name, kind in embedded().items() if kind.startswith("StableDiffusion")]
    return sorted(names, key=lambda name: ("turbo" in name, name))


def nar_models() -> list[str]:
    """The NAR pipelines for pictures that ship with the package."""
    return [name for name, kind in embedded().items() if kind == "NARPipeline"]


def nar_clip_models() -> list[str]:
    """The NAR pipelines for clips that ship with the package."""
    return [name for name, kind in embedded().items() if kind == "NARVideoPipeline"]


def embedded() -> dict[str, str]:
    """The class of every shipped pipeline."""
    kinds = {}
    for index in sorted(EMBEDDED.glob("*/model_index.json")):
        kind = json.loads(index.read_text(encoding="utf-8"))["_class_name"]
        kinds[f"embedded/{index.parent.name}"] = kind
    return kinds


def loras(model: str | None = None) -> list[tuple[str, str]]:
    """(label, value) of the choice of none, the LoRAs that ship, and those in the runs folder,
    newest first.

    With a model only those that were trained on it.
    """
    from align.models.lora_files import shipped_loras  # it imports torch

    shipped = [(name, name) for name, of in shipped_loras().items() if model in (None, of)]
    found = []
    for pattern in ("*/lora/*.safetensors", "*/*/lora/*.safetensors"):
        for file in RUNS.glob(pattern):
            run = file.parents[1]
            config = run_config(run)
            if model is None or config.get("model") in (None, model):
                reward = f" ({config['reward']})" if "reward" in config else ""
                label = f"{run.relative_to(RUNS)}{reward}"
                found.append((file.stat().st_mtime, label, str(run)))
    found = sorted(found, reverse=True)[:LORAS_LISTED]
    return [("none", NO_LORA), *shipped, *((label, value) for _, label, value in found)]


def run_config(run: Path) -> dict[str, Any]:
    """The settings of a run; empty where it has none that can be read."""
    try:
        config = json.loads((run / "run.json").read_text(encoding="utf-8"))["config"]
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return config if isinstance(config, dict) else {}


def defaults(model: str) -> tuple[int, float]:
    """Steps and guidance that suit a model."""
    name = model.lower()
    kind = "turbo" if "turbo" in name else "embedded" if name.startswith("embedded/") else "other"
    return DEFAULTS[kind]


def nar_defaults(model: str) -> tuple[float, float]:
    """Guidance and temperature of a NAR model: its own if it ships with the package."""
    if model not in [*nar_models(), *nar_clip_models()]:
        return NAR_DEFAULTS
    file = EMBEDDED / model.removeprefix("embedded/") / "scheduler" / "scheduler_config.json"
    own = json.loads(file.read_text(encoding="utf-8"))
    return own["guidance_scale"], own["temperature"]


@functools.cache
def rewards() -> tuple[str, ...]:
    """The rewards that can be had at once, those of the embedded world first."""
    from align.rewards.listing import list_rewards

    names = [one.name for one in list_rewards() if one.installed and not one.judge_only]
    return tuple(sorted(names, key=lambda name: not name.startswith("scenes-")))


def expressions() -> list[str]:
    """Ready-made reward expressions: what searches take by default, then each reward."""
    return [SCENES_REWARD, *rewards()]


def check_model(value: Any, allow_any: bool, known: list[str] | None = None) -> str:
    """A model's name. Raises ValueError for one that is not listed, unless any is allowed."""
    known = models() if known is None else known
    name = values.text("model", value, needed=False)
    if not name:
        raise ValueError("no model is chosen; choose one under Settings")
    if not allow_any and name not in known:
        raise ValueError(f"the model is {values.short(name)}; {one_of(name, known)}")
    return name


def check_lora(value: Any, allow_any: bool) -> tuple[str, ...]:
    """The LoRA chosen, or none."""
    name = values.text("LoRA", value)
    known = [value for _, value in loras()]
    if not allow_any and name not in known:
        listed = ", ".join(known[1:]) or "none yet"
        raise ValueError(f"the LoRA is {values.short(name)}; allowed: {listed}")
    return (name,) if name else ()


def check_reward(value: Any, allow_any: bool) -> str:
    """A reward expression of known names.

    Raises ValueError for a malformed one and, unless any is allowed, for a name with an argument
    or a file: those are read from this machine's disk, and a file is a program.
    """
    from align.rewards.expression import leaves, parse_expression

    text = values.text("reward", value)
    if not text:
        raise ValueError(f"no reward is chosen; {one_of('', rewards())}")
    if len(text) > REWARD_LENGTH:
        raise ValueError(f"the reward has {len(text)} characters; {REWARD_LENGTH} at most")
    for term in leaves(parse_expression(text)):
        if not allow_any and (term.name not in rewards() or term.argument is not None):
            said = one_of(term.key, rewards())
            raise ValueError(f"the reward is {values.short(term.key)}; {said}")
    return text
