"""Checks of configs, and configs from and to JSON. Standard library only."""

import dataclasses
import types
import typing
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Annotated, Any, Literal, TypeVar

INPUT_ERRORS = (ValueError, TypeError, FileNotFoundError)  # of the caller's making
ConfigT = TypeVar("ConfigT")
# Numbers and their ranges, which `check` reads.
Count = Annotated[int, "at least 1"]
CountOr0 = Annotated[int, "0 or more"]
NotNegative = Annotated[float, "0 or more"]
Positive = Annotated[float, "more than 0"]
Share = Annotated[float, "from 0 to 1"]


@dataclasses.dataclass(frozen=True, eq=False)
class OneOf:
    """Marks a text that has to be a name of a table, as that is when it is checked."""

    table: Mapping[str, Any]


_RANGES = {
    "at least 1": lambda v: v >= 1,
    "0 or more": lambda v: 0 <= v < float("inf"),
    "more than 0": lambda v: 0 < v < float("inf"),
    "from 0 to 1": lambda v: 0 <= v <= 1,
}
Dtype = Literal["float32", "bfloat16", "float16"]
Attention = Literal["auto", "xformers", "sdpa", "math"]
# Settings that are gone, each at its former default, which a saved run may still name.
REMOVED: dict[str, dict[str, Any]] = {
    "NarAlignConfig": {
        "gae_lambda": None,
        "value_points": 15,
        "inner_updates": 1,
        "clip_range": 0.2,
    },
    "OptimizeConfig": {"prior": "log-norm"},
    "OptimizeRunConfig": {"prior": "log-norm"},
}


def read_stop(text: str) -> float:
    """The limit in `grid:0.01`. Raises ValueError for any other form."""
    name, _, limit = str(text).partition(":")
    try:
        value = float(limit)
    except ValueError:
        value = float("nan")
    if name != "grid" or not 0 < value < float("inf"):
        raise ValueError(f"stop_on is {text!r}; it must be grid:NUMBER, such as grid:0.01")
    return value


def check(config: Any) -> None:
    """Raise ValueError naming the first field that its type does not allow: the values of a
    `Literal` or `OneOf`, the range of a `Count` and its like. None is always allowed."""
    for name, hint in typing.get_type_hints(type(config), include_extras=True).items():
        value = getattr(config, name)
        if value is None:
            continue
        if (allowed := choices(hint)) and value not in allowed:
            raise ValueError(f"{name} is {value!r}; {one_of(value, allowed)}")
        for meaning in _ranges(hint):
            if not _RANGES[meaning](value):
                raise ValueError(f"{name} is {value}; it must be {meaning}")


def fill_in(
    config: Any, presets: Mapping[str, Mapping[str, Any]], filled: Mapping[str, Any] | None
) -> None:
    """Give the fields that the caller did not the values of `config.preset`.

    `config.given` are the constructor's arguments. `filled` is what the config that this one
    replaces had been given by its own preset and the defaults (`dataclasses.replace` hands on
    every field): where an argument is still that value, the caller did not give it.

    Raises ValueError for a preset that is not among `presets`.
    """
    if config.preset is not None and config.preset not in presets:
        raise ValueError(f"preset is {config.preset!r}; {one_of(config.preset, presets)}")
    values, before = presets.get(config.preset or "", {}), dict(filled or {})
    own: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        name = field.name
        given = name in config.given and (name not in before or config.given[name] != before[name])
        if not given and name != "preset":
            own[name] = values.get(name, field.default)
            object.__setattr__(config, name, own[name])
    object.__setattr__(config, "filled", own)


def imply_out(config: Any) -> None:
    """Let `resume` stand for `out`. Raises ValueError where the two differ or clash."""
    if config.resume is None:
        return
    if config.out not in (None, config.resume):
        raise ValueError(f"out is {config.out!r} but resume is {config.resume!r}; give one of them")
    if config.overwrite:
        raise ValueError("overwrite and resume exclude each other; give one of them")
    object.__setattr__(config, "out", config.resume)


def _ranges(hint: Any) -> tuple[str, ...]:
    """What an annotated number (or an optional one) must be."""
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        return tuple(meaning for part in typing.get_args(hint) for meaning in _ranges(part))
    return tuple(said for said in getattr(hint, "__metadata__", ()) if said in _RANGES)


def choices(hint: Any) -> tuple[Any, ...]:
    """The values that a `Literal` or `OneOf` (or an optional one) allows; empty for other types."""
    for marker in getattr(hint, "__metadata__", ()):
        if isinstance(marker, OneOf):
            return tuple(marker.table)
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        return tuple(value for part in typing.get_args(hint) for value in choices(part))
    return typing.get_args(hint) if typing.get_origin(hint) is Literal else ()


def one_of(value: object, allowed: Iterable[Any]) -> str:
    """The end of an error message: the nearest of the allowed names, then all (unless many)."""
    names = [str(name) for name in allowed]
    near = get_close_matches(str(value), names, n=2, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else ""
    everything = f"Allowed: {', '.join(names)}"
    return hint if near and len(names) > 30 else f"{hint} {everything}".strip()


def to_dict(config: Any) -> dict[str, Any]:
    """A config as plain JSON values."""
    return dataclasses.asdict(config)


def from_dict(kind: type[ConfigT], values: dict[str, Any]) -> ConfigT:
    """The config of a dictionary that `to_dict` or a JSON file made; absent fields keep defaults.

    Raises ValueError for an unknown field, TypeError for a value of the wrong type.
    """
    hints, values = typing.get_type_hints(kind), without_removed(kind, values)
    for name, value in values.items():
        if name not in hints:
            raise ValueError(f"{kind.__name__} has no field {name!r}; {one_of(name, hints)}")
        if not _fits(value, hints[name]):
            raise TypeError(
                f"{name} is {value!r}; {kind.__name__} expects {_type_text(hints[name])}"
            )
    return kind(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})


def without_removed(kind: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """Saved settings less those of `REMOVED`. Raises ValueError where one of them was changed."""
    gone = REMOVED.get(kind.__name__, {})
    for name in gone.keys() & values.keys():
        if values[name] != gone[name]:
            raise ValueError(
                f"{name} is {values[name]!r}, but that setting was removed; only a run that left "
                f"it at {gone[name]!r} can be loaded"
            )
    return {name: value for name, value in values.items() if name not in gone}


def _type_text(hint: Any) -> str:
    """A field's type as one writes it: `int | None`."""
    union = typing.get_origin(hint) in (types.UnionType, typing.Union)
    parts = typing.get_args(hint) if union else (hint,)
    names = [part.__name__ if type(part) is type else str(part) for part in parts]
    return " | ".join(names).replace("NoneType", "None")


def _fits(value: Any, hint: Any) -> bool:
    """Whether a JSON value can stand for a field of this type."""
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        return any(_fits(value, part) for part in typing.get_args(hint))
    if typing.get_origin(hint) is tuple:
        inner = typing.get_args(hint)[0]
        return isinstance(value, list | tuple) and all(_fits(item, inner) for item in value)
    if typing.get_origin(hint) is Literal:
        return isinstance(value, str)
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return isinstance(value, hint) and not (hint is int and isinstance(value, bool))


def one_line(error: BaseException) -> str:
    """An error's message on one line; its class where it has none."""
    if isinstance(error, OSError) and error.strerror and error.filename is None:
        return error.strerror  # without "[Errno 28]"
    return " ".join(str(error).split()) or type(error).__name__
