"""`align fetch`: the only downloader. Weights of published rewards, from the Hub or GitHub.

Files go to the Hub's cache, or to OWNER/NAME below the folder of `ALIGN_WEIGHTS`, which may then be
copied to a machine without network.
"""

import hashlib
import os
import re
import shutil
import urllib.error
import urllib.request
from pathlib import Path

from align.config.checks import one_of
from align.config.commands import FetchConfig
from align.rewards.catalogue import REWARDS, SETS, Source, published, size_text, sources
from align.rewards.expression import expand, leaves, parse_expression
from align.rewards.weights import MODEL_FILES, find_file, missing_files, own_folder
from align.runs.files import atomic_path, brief

BLOCK = 2**20


def run(config: FetchConfig) -> str:
    """What `align fetch` prints at its end.

    Raises:
        ValueError: no name or an unknown one; with `check`, a file that has another checksum.
        FileNotFoundError: a repository that cannot be reached; with `check`, missing files.
    """
    if config.list:
        return list_text()
    if not (config.check or config.source):
        raise ValueError("name what to fetch, as `align fetch hps`; --list shows what there is")
    wanted = plan(config.source or tuple(published()))
    if config.check:
        return check(wanted, only_present=not config.source)
    return "\n".join(f"{source.repo}: {download(source)}" for source in wanted)


def plan(names: tuple[str, ...]) -> list[Source]:
    """The sources of reward names or expressions, each once. Raises ValueError for unknown ones."""
    found: dict[Source, None] = {}
    for name in names:
        for term in leaves(expand(parse_expression(name), SETS)):
            of_term = sources(term.name, term.argument)
            if not of_term:
                known = [*published(), *SETS]
                raise ValueError(f"{term.key} has no published weights; {one_of(term.key, known)}")
            found |= dict.fromkeys(of_term)
    return list(found)


def list_text() -> str:
    """What can be fetched, a line for each repository."""
    lines = [f"{'name':<34}{'size':>14}  {'licence':<14}{'checksum':<18}from"]
    for name, of_name in published().items():
        for index, source in enumerate(of_name):
            known = f"sha256 {source.sha256[:8]}…" if source.sha256 else "from the Hub"
            files = ", ".join(source.files if not source.model else ["model"])
            lines.append(
                f"{name if index == 0 else '':<34}{size_text(source.size):>14}  "
                f"{source.licence:<14}{known:<18}{source.repo} ({files})"
            )
    lines += [f"{name:<34}{'':>14}  {'':<14}{'':<18}{text}" for name, text in SETS.items()]
    free = [f"{name}:" for name, one in REWARDS.items() if one.any_repository]
    free += [f"{name}:model=" for name, one in REWARDS.items() if "model" in one.words]
    lines += ["", f"{', '.join(free[:-1])} and {free[-1]} take any OWNER/NAME of the Hub."]
    return "\n".join(lines)


def download(source: Source) -> Path:
    """Fetch what is missing of a source; the folder where it lies.

    Raises FileNotFoundError where the repository cannot be reached or is gated, ValueError for a
    file that came with another checksum.
    """
    if not missing_files(source):
        path = find_file(source, source.files[0])
    elif source.url is not None:
        path = _from_url(source, source.url)
    else:
        fetched = [_from_hub(source.repo, name) for name in hub_files(source)]
        path = fetched[0]
    assert path is not None
    return path.parent


def hub_files(source: Source) -> list[str]:
    """The files to take of a Hub repository: those named, and the model's weights if wanted.

    Beside them the small text files that transformers may want: configs and tokenizers.
    """
    if not (source.model or source.any_of):
        return list(source.files)
    from huggingface_hub import HfApi

    present = _reach(source.repo, lambda: HfApi().list_repo_files(source.repo))
    kinds = (".json", ".txt", ".model", ".jinja")
    small = [n for n in present if n.endswith(kinds) and "/" not in n]
    small = [name for name in small if not name.endswith(".index.json")]
    if not source.model:
        return [name for name in small if name in (*source.files, *source.any_of)]
    for index in MODEL_FILES:
        stem, kind = index.removesuffix(".index.json").rsplit(".", 1)
        shards = [n for n in present if re.fullmatch(rf"{stem}(-\d+-of-\d+)?\.{kind}", n)]
        if index in present and shards:
            whole = [n for n in shards if n == f"{stem}.{kind}"]
            indices = [n for n in present if n == f"{stem}.{kind}.index.json"]
            return [*small, *(whole or [*shards, *indices])]
    raise FileNotFoundError(f"{source.repo} has no weights that transformers reads")


def _from_hub(repo: str, name: str) -> Path:
    from huggingface_hub import hf_hub_download

    own = os.environ.get("ALIGN_WEIGHTS")
    folder = None if not own else Path(own).expanduser() / repo
    return Path(_reach(repo, lambda: hf_hub_download(repo, name, local_dir=folder)))


def _reach(repo: str, call):
    """Call the Hub, its errors as one sentence that says what to do."""
    from huggingface_hub.errors import GatedRepoError, HFValidationError, HTTPError

    try:
        return call()
    except GatedRepoError as error:
        raise FileNotFoundError(
            f"{repo} is gated: accept its licence on https://huggingface.co/{repo}, then run "
            "`hf auth login`"
        ) from error
    except (HFValidationError, HTTPError, OSError) as error:
        reason = brief(error)
        raise FileNotFoundError(
            f"{repo} could not be fetched ({reason}); what came is kept, the same command goes on"
        ) from error


def _from_url(source: Source, url: str) -> Path:
    """One file of the web into `own_folder`, checked before it gets its name."""
    path = own_folder() / source.repo / source.files[0]
    with atomic_path(path) as temporary:
        try:
            with urllib.request.urlopen(url, timeout=60) as answer, temporary.open("wb") as file:
                shutil.copyfileobj(answer, file, BLOCK)
        except (urllib.error.URLError, TimeoutError, OSError) as error:
            raise FileNotFoundError(f"{url} could not be fetched ({error})") from error
        if source.sha256 and not digest(temporary).startswith(source.sha256):
            raise ValueError(f"{url} came with another checksum than {source.sha256}")
    return path


def check(wanted: list[Source], *, only_present: bool) -> str:
    """Compare files with their checksums; a line for each.

    Raises ValueError for the first file that does not agree, FileNotFoundError for missing ones
    (with `only_present` they are left out).
    """
    lines = []
    for source in wanted:
        missing = missing_files(source)
        if missing and only_present:
            continue
        if missing:
            raise FileNotFoundError(f"{source.repo} lacks {', '.join(missing)} on this machine")
        for path in present_files(source):
            expected = expected_digest(source, path)
            found = "" if expected is None else digest(path, git=len(expected) == 40)
            if expected is not None and not found.startswith(expected):
                raise ValueError(
                    f"{path} is damaged: its checksum is not {expected}; delete it and fetch "
                    f"{source.repo} again"
                )
            lines.append(f"{'ok' if expected else 'no checksum known':<18}{path}")
    return "\n".join(lines) or "none of the published weights are on this machine"


def present_files(source: Source) -> list[Path]:
    """The files of a source on this machine, shards too."""
    names = [*source.files, *(MODEL_FILES if source.model else ())]
    found = [path for name in names if (path := find_file(source, name)) is not None]
    shards = [p for path in found[:1] for p in sorted(path.parent.glob("*-of-*"))]
    return list(dict.fromkeys([*found, *shards])) if source.model else found


def expected_digest(source: Source, path: Path) -> str | None:
    """The checksum of a file: the table's, else what the Hub said when it was downloaded.

    The Hub's cache names a file by it; a local folder keeps it in `.cache/huggingface`. 64 digits
    are SHA-256, 40 are Git's SHA-1, fewer the first of SHA-256.
    """
    if source.sha256 is not None:
        return source.sha256
    stored = path.parent / ".cache" / "huggingface" / "download" / f"{path.name}.metadata"
    known = stored.read_text().split() if stored.is_file() else [path.resolve().name]
    marks = [mark for mark in known[-2:] if re.fullmatch(r"[0-9a-f]{64}|[0-9a-f]{40}", mark)]
    return marks[0] if marks else None


def digest(path: Path, *, git: bool = False) -> str:
    """SHA-256 of a file, or (`git`) the SHA-1 that Git gives it."""
    state = hashlib.sha1(f"blob {path.stat().st_size}\0".encode()) if git else hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            state.update(block)
    return state.hexdigest()
