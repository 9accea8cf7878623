"""A command's arguments to its config, by tyro: saved runs and presets as defaults, errors in one
line."""

import contextlib
import dataclasses
import io
import os
import re
from typing import Annotated, Any, Literal, get_origin, get_type_hints

from align.config.checks import ConfigT, choices
from align.config.groups import ordered

SAVED = "--config FILE.json starts from a saved run.json; the other options override it."


def parse(kind: type[ConfigT], args: list[str], command: str) -> ConfigT:
    """The config that command-line arguments describe; flags override --config and --resume.

    Raises ValueError, in one line, for whatever is wrong with them.
    """
    import tyro

    default, args = _defaults(kind, args, command)
    errors, width = io.StringIO(), os.environ.get("COLUMNS")
    if not {"-h", "--help"} & set(args):
        os.environ["COLUMNS"] = "10000"  # tyro wraps its messages, even within words
    try:
        with contextlib.redirect_stderr(errors):
            return tyro.cli(
                _with_markers(kind),
                args=args,
                default=default,
                prog=f"align {command}",
                description=f"{kind.__doc__}\n\n{SAVED}" if hasattr(kind, "out") else kind.__doc__,
            )
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        raise ValueError(_tyro_message(errors.getvalue())) from None
    finally:
        os.environ.pop("COLUMNS", None)
        if width is not None:
            os.environ["COLUMNS"] = width


def _defaults(kind: type[ConfigT], args: list[str], command: str) -> tuple[ConfigT, list[str]]:
    """The config of --config FILE or --resume DIR, else the usual one; the arguments left."""
    from align.runs.folder import load_config

    saved, args = _take(args, "--config")
    fields = {field.name for field in dataclasses.fields(kind)}  # pyright: ignore[reportArgumentType]
    resumed = _peek(args, "--resume") if "resume" in fields else None
    if saved is None and resumed and os.path.exists(os.path.join(resumed, "run.json")):
        saved = resumed
    preset = _peek(args, "--preset") if "preset" in fields else None
    if preset and saved:
        raise ValueError("--preset and a saved configuration exclude each other; give one of them")
    start = {"preset": preset} if preset else {}
    default = load_config(saved, kind, command) if saved else kind(**start)
    if "lora" in fields and _peek(args, "--lora"):  # given LoRAs replace those saved
        default = dataclasses.replace(default, lora=())  # pyright: ignore[reportArgumentType]
    return _with_markers(kind)(**dataclasses.asdict(default)), args  # pyright: ignore[reportArgumentType]


def _take(args: list[str], option: str) -> tuple[str | None, list[str]]:
    """The value of an option and the arguments without it."""
    for index, word in enumerate(args):
        if word == option and index + 1 == len(args):
            raise ValueError(f"{option} needs a value")
        if word == option:
            return args[index + 1], args[:index] + args[index + 2 :]
        if word.startswith(f"{option}="):
            return word.removeprefix(f"{option}="), args[:index] + args[index + 1 :]
    return None, args


def _peek(args: list[str], option: str) -> str | None:
    return _take(args, option)[0]


def _with_markers(kind: type[ConfigT]) -> type[ConfigT]:
    """The config class for tyro: prompts and sources without a flag, --lora once per LoRA, names
    of tables as choices."""
    import tyro

    positional, repeated = tyro.conf.Positional, tyro.conf.UseAppendAction
    markers = {"prompt": positional, "source": positional, "lora": repeated}
    fields = [
        (field.name, Annotated[tuple[str, ...], markers[field.name]], ())
        for field in dataclasses.fields(kind)  # pyright: ignore[reportArgumentType]
        if field.name in markers
    ]
    hints = get_type_hints(kind, include_extras=True)
    fields += [
        (field.name, Literal[choices(hints[field.name])], field.default)
        for field in dataclasses.fields(kind)  # pyright: ignore[reportArgumentType]
        if get_origin(hints[field.name]) is Annotated and choices(hints[field.name])
    ]
    marked: Any = dataclasses.make_dataclass(
        kind.__name__, fields, bases=(kind,), frozen=True, kw_only=True
    )
    options = {name: marked.__dataclass_fields__[name] for name in ordered(kind)}
    marked.__dataclass_fields__ = options
    return marked


def _tyro_message(box: str) -> str:
    """The one sentence in tyro's box of an error: title, rule, message, rule, hints, rule, …"""
    parts: list[list[str]] = [[]]
    for line in box.splitlines():
        if re.search("[─-]{5,}", line):
            parts.append([])
        else:
            parts[-1].append(line.strip(" │"))
    _, message, *hints = [" ".join(lines) for lines in parts]
    message = re.sub(r"^Error parsing \w*Config: ", "", message)
    choice = re.fullmatch(r"invalid choice (.+) for argument '(--[\w-]+)'\. .*\((.+)\)\.", message)
    if choice:  # tyro lists them in no order
        value, option, allowed = choice.groups()
        names = sorted(set(re.findall(r"'([^']+)'", allowed)) - {"None"})
        return f"{option} is {value}; it must be one of {', '.join(names)}"
    no_number = re.fullmatch(r"Error parsing (--[\w-]+): .*(to float|for int\b.*): (.+)", message)
    if no_number:
        option, kind, value = no_number.groups()
        return f"{option} is {value}; it must be a {'' if 'float' in kind else 'whole '}number"
    if not message.startswith("Unrecognized"):
        return message
    hints = [hint for hint in hints if not hint.startswith("For full helptext")]
    near = list(dict.fromkeys(re.findall(r" (--[a-z][a-z-]+)", " ".join(hints))))[:2]
    return f"{message}; did you mean {' or '.join(near)}?" if near else message
