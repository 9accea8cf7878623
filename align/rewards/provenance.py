"""What LoRAs and models were trained and chosen by: read from the runs that wrote them."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from align.models.lora_files import SHIPPED, parse_lora
from align.rewards import REWARDS, parse_expression
from align.rewards.catalogue import SETS
from align.rewards.expression import leaves
from align.rewards.identity import shared, terms_of

DEPTH = 3  # folders between a run and the LoRA file of one of its checkpoints


def run_of(source: str) -> dict[str, Any]:
    """The run.json of the run that wrote a LoRA or model; empty where none is near."""
    folder = _folder_of(source)
    return {} if folder is None else _saved(folder)


def trained_reward(lora: str) -> str | None:
    """The reward of the run that a LoRA comes from; None where that is not known, or was a
    function given in Python, of which the run has the name alone."""
    return _reward(run_of(lora).get("config") or {})


def trained_terms(sources: Sequence[str]) -> list[str]:
    """The terms that LoRAs or models were trained by, those that they were trained from included.

    Mixed, exported and merged ones count as all that they were made of.
    """
    rewards = [_reward(config) for source in sources for _, config in _history(source)]
    return list(dict.fromkeys(term for one in rewards if one for term in terms_of(one)))


def choosing_terms(sources: Sequence[str]) -> list[str]:
    """The terms of the judges that chose a `lora-best` among these or what they come from."""
    judges = [
        config["judge"]
        for source in sources
        for name, config in _history(source)
        if "lora-best" in _path(name).parts and config.get("judge")
    ]
    return list(dict.fromkeys(term for one in judges for term in terms_of(one)))


def judged_by_reward(config: Any) -> list[str]:
    """The terms of a run's judge that the run, or what it starts from, is trained by."""
    trained = trained_terms([*(config.lora or ()), config.model])
    trained += terms_of(config.reward) if _can_be_loaded(config.reward) else []
    return shared(terms_of(config.judge), trained)


def _history(source: str, base: Path = Path(), seen: frozenset = frozenset()) -> Iterator[tuple]:
    """(name, config) of the run that wrote a LoRA or model, and of those before it."""
    # names in a run.json are relative to where that run was started
    places = [str(place / source) for place in (Path(), base, *base.parents)]
    folder = next((found for place in places if (found := _folder_of(place))), None)
    if folder is None or folder in seen:
        return
    config = _saved(folder).get("config") or {}
    yield source, config
    before = [*(config.get("lora") or ()), *(config.get("source") or ()), config.get("model")]
    for one in before:
        if isinstance(one, str):
            yield from _history(one, folder, seen | {folder})


def _path(source: str) -> Path:
    if source.startswith("embedded/"):
        return SHIPPED / parse_lora(source)[0].removeprefix("embedded/")
    path = Path(source).expanduser()
    return path if path.exists() else Path(source.rpartition("=")[0] or source).expanduser()


def _folder_of(source: str) -> Path | None:
    path = _path(source)
    if not path.exists():
        return None
    depth = 1 if (path / "model_index.json").is_file() else DEPTH
    folders = (path, *list(path.absolute().parents)[:depth])
    return next((one.resolve() for one in folders if (one / "run.json").is_file()), None)


def _saved(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "run.json").read_text(encoding="utf-8"))


def _reward(config: dict[str, Any]) -> str | None:
    reward = config.get("reward")
    return reward if isinstance(reward, str) and _can_be_loaded(reward) else None


def _can_be_loaded(expression: str) -> bool:
    try:
        names = [leaf.name for leaf in leaves(parse_expression(expression))]
    except ValueError:
        return False
    return all(name in REWARDS or name in SETS or name.endswith(".py") for name in names)
