"""Prompts as units of work: one file each, done once by whichever process claims it.

A claim is a file lock, which ends with its process: a killed process loses at most the prompt it
was at, and whoever comes next, or a later run with --resume, does that one again. Everything in
a prompt's file follows from the configuration and the prompt alone, times apart.
"""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from align.config.checks import to_dict
from align.runs.files import claimed, write_json
from align.runs.folder import check_folder, open_run

WAIT = 300.0  # seconds that other processes wait for the first one to make the folder
# Where and how fast a run is computed; results do not depend on it.
PLACE = ("out", "overwrite", "resume", "device", "allow_busy")


def process() -> tuple[int, int]:
    """(this process's number, how many there are), as torchrun and accelerate launch say."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    return int(os.environ.get("RANK", "0")) if world > 1 else 0, world


def open_shared_run(config: Any, command: str, **ran: Any) -> Path:
    """The run's folder: the first process makes it, the others wait for it.

    `ran` goes to run.json as with `open_run`.

    Raises ValueError where the folder belongs to a run of another configuration, or several
    processes are not told a folder.
    """
    rank, world = process()
    out = config.resume or config.out
    if world > 1 and not out:
        raise ValueError(f"--out is needed with {world} processes, so that they share a folder")
    if config.resume:
        check_same(Path(config.resume), config, command)
    if world == 1:
        return open_run(out, config, config.overwrite, config.resume, command=command, **ran)
    launch = Path(out) / "launch.json"
    token = {name: os.environ.get(name) for name in ("TORCHELASTIC_RUN_ID", "MASTER_PORT")}
    if rank == 0:
        folder = open_run(out, config, config.overwrite, config.resume, command=command, **ran)
        write_json(launch, token)
        return folder
    limit = time.monotonic() + WAIT
    while not (launch.is_file() and json.loads(launch.read_text()) == token):
        if time.monotonic() > limit:
            raise RuntimeError(f"the first process has not opened {out}; see what it says")
        time.sleep(0.1)
    return Path(out)


def check_out(config: Any) -> None:
    """Raise ValueError where the folder would be refused; for use before anything is loaded."""
    if process()[0] == 0:
        check_folder(config.resume or config.out, config.overwrite, config.resume)


def check_same(folder: Path, config: Any, command: str) -> None:
    """Raise ValueError where the folder's run differs in anything that changes results."""
    file = folder / "run.json"
    if not file.is_file():
        return
    saved = json.loads(file.read_text(encoding="utf-8"))
    if saved.get("command") != command:
        raise ValueError(
            f"{folder} is a run of `align {saved.get('command')}`, not `align {command}`; give "
            "another folder"
        )
    mine = json.loads(json.dumps(to_dict(config)))
    for name, value in mine.items():
        before = saved["config"].get(name)
        if name not in PLACE and before != value:
            raise ValueError(
                f"{folder} belongs to another configuration: its {name} is {before!r}, not "
                f"{value!r}; give another folder or the same settings"
            )


def prompt_file(folder: Path, index: int) -> Path:
    """Where the results of a prompt are."""
    return folder / "prompts" / f"{index:04d}.json"


def do_all(folder: Path, count: int, do: Callable[[int], dict[str, Any]]) -> None:
    """Do every prompt that nobody has done or is doing; `do(index)` returns its results.

    Processes start at different places so that they seldom meet; at the end each looks once more
    for prompts that a killed process has left.
    """
    from tqdm import tqdm

    rank, world = process()
    start = rank * count // world
    order = [(start + i) % count for i in range(count)]
    done = sum(prompt_file(folder, i).is_file() for i in range(count))
    with tqdm(total=count, initial=done, unit="prompt", disable=rank > 0) as progress:
        for index in order * 2:
            file = prompt_file(folder, index)
            if file.is_file():
                continue
            with claimed(folder / "claims" / f"{index:04d}.lock") as mine:
                if mine and not file.is_file():
                    write_json(file, do(index))
            progress.n = sum(prompt_file(folder, i).is_file() for i in range(count))
            progress.refresh()


def read_all(folder: Path, count: int) -> list[dict[str, Any]] | None:
    """The results of all prompts in order; None while some are still to come."""
    files = [prompt_file(folder, index) for index in range(count)]
    if not all(file.is_file() for file in files):
        return None
    return [json.loads(file.read_text(encoding="utf-8")) for file in files]
