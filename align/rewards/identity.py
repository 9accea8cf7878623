"""Which rewards are the same: by what they load, not by how they are written."""

import hashlib
from collections.abc import Iterable
from pathlib import Path

from align.rewards.catalogue import SERVERS, SETS, Source, sources
from align.rewards.expression import Term, expand, leaves, parse_expression
from align.rewards.weights import CHECKPOINTS, MODEL_FILES, find_file

# Without weights: one reading under two names.
ALIASES = {"verifier-partial": "verifier"}
# With weights, but one rule by whatever weights: what deceives it deceives it again.
RULES = ("geneval", "geneval2")
PART = 2**20  # bytes of a file's start and end that tell it from others of its size


def terms_of(expression: str) -> list[str]:
    """The names of an expression's terms, sets replaced by what they stand for."""
    return [leaf.key for leaf in leaves(expand(parse_expression(expression), SETS))]


def shared(names: Iterable[str], others: Iterable[str]) -> list[str]:
    """Those of `names` (terms as written) that load what one of `others` loads.

    Terms by the same weights are the same here, whatever they ask of them: a picture that deceives
    the one may deceive the other. A common CLIP below two heads does not count.
    """
    loaded = set[str]().union(*(_marks(name) for name in others))
    return [name for name in names if _marks(name) & loaded]


def _marks(name: str) -> set[str]:
    """What tells a term's weights or code: two terms are the same where they have one in common."""
    first, colon, rest = name.rpartition(":") if ".py:" in name else name.partition(":")
    term = Term(first, rest if colon else None)
    if term.name.endswith(".py"):
        path = Path(term.name)
        marks = {f"{path.resolve()}:{term.argument}"}
        return marks | ({f"{_content(path)}:{term.argument}"} if path.is_file() else set())
    if term.name in SERVERS:
        return {(term.argument or "").partition(";")[0].partition("//")[2]}
    found = sources(term.name, term.argument)
    if not found:
        return {ALIASES.get(term.name, term.name)}
    source, given = found[0], _given(term)
    file = _weights(source, given)
    marks = {_content(file)} if file else set()
    marks |= {term.name} & {*RULES}
    if given is not None:
        return {*marks, str(given.resolve())}
    return {*marks, source.repo if source.model else f"{source.repo}/{source.files[0]}"}


def _given(term: Term) -> Path | None:
    """The file or folder of weights that a term names."""
    for part in (term.argument or "").split(";"):
        path = Path(part.removeprefix("model=")).expanduser()
        if part and path.exists() and path.suffix != ".json":  # which holds questions
            return path
    return None


def _weights(source: Source, given: Path | None) -> Path | None:
    if given is not None and given.suffix in CHECKPOINTS:
        return given
    names = MODEL_FILES if source.model else source.files[:1]
    return next((file for name in names if (file := find_file(source, name, given))), None)


def _content(path: Path) -> str:
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(PART)
        file.seek(max(0, size - PART))
        return f"{size} {hashlib.sha256(start + file.read()).hexdigest()}"
