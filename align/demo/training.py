"""A LoRA's training in the background: `align train` as a process of its own.

It goes on whoever leaves or reloads the page, every visitor sees it, and its folder is all that
the page reads. One training at a time; only the browser that started it may stop it.
"""

import atexit
import hashlib
import json
import logging
import os
import runpy
import shlex
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from align.config.train import TrainConfig
from align.demo import folders
from align.runs.files import write_atomic
from align.runs.folder import read_metrics
from align.runs.page import command_line

log = logging.getLogger(__name__)
KIND = "train"
PATIENCE = 60  # seconds that a training gets to save as the demo ends
_LOCK = threading.Lock()


@dataclass(frozen=True)
class Job:
    """The training under way, or the last one of this server."""

    folder: Path
    process: subprocess.Popen
    ends: float
    """When its minutes are over, by the monotonic clock."""


@dataclass(frozen=True)
class View:
    """What can be seen of a training."""

    folder: Path
    config: dict[str, Any]
    records: list[dict[str, Any]]
    """metrics.jsonl"""
    running: bool
    seconds_left: float
    before: Path | None
    latest: Path | None
    """The fixed pictures by the base model, and by the newest LoRA that was drawn."""
    lora: Path | None
    """Its file, once there is one."""
    report: dict[str, Any]
    """report.json of a finished one."""
    fault: str
    """The last line of a failed one."""


_JOB: Job | None = None


def start(config: TrainConfig, prompts: list[str], owner: str) -> Path:
    """Begin a training; returns its folder. Raises ValueError while another one goes on."""
    global _JOB
    with _LOCK:
        if _JOB is not None and _JOB.process.poll() is None:
            raise ValueError(
                "a training is under way, see below; the demo does one at a time, "
                "try again when it is done"
            )
        if _JOB is not None:
            _let_go(_JOB)
        folders.clean_up()
        folder = folders.reserve(KIND, owner=_digest(owner))
        words = command(config, prompts, folder)
        with beside(folder, ".log").open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "align.demo.training", *words[1:]],
                stdin=subprocess.PIPE,  # it closes when the demo is gone, however that ended
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # the terminal's Ctrl-C comes to it by `end` alone
            )
        _JOB = Job(folder, process, time.monotonic() + 60 * (config.max_minutes or 0))
    return folder


def command(config: TrainConfig, prompts: list[str], folder: Path) -> list[str]:
    """The words of `align train` for this config; prompts of a visitor's own go into a file."""
    words = shlex.split(command_line("train", config))
    if prompts:
        file = beside(folder, ".txt")
        write_atomic(file, "\n".join(prompts) + "\n")
        words += ["--prompts", str(file)]
    return [*words, "--out", str(folder)]


def stop(owner: str) -> None:
    """Ask the training to save and end. Raises ValueError where there is none, or of others."""
    job = _JOB
    if job is None or job.process.poll() is not None:
        raise ValueError("no training is under way")
    if folders.note_of(job.folder).get("owner") != _digest(owner):
        raise ValueError("only the browser that started this training can stop it")
    _interrupt(job)


def newest() -> View | None:
    """The training under way or, without one, the newest that the demo has made."""
    job = _JOB
    if job is not None and job.process.poll() is None:
        return view(job.folder)
    known = folders.folders(KIND)
    if job is not None and not job.folder.is_dir():  # it failed before it had a folder
        return view(job.folder)
    return view(known[-1]) if known else None


def view(folder: Path) -> View:
    """What the folder of a training says."""
    job = _JOB
    mine = job is not None and job.folder == folder
    running = job is not None and mine and job.process.poll() is None
    images = sorted((folder / "images").glob("step-*.png"))
    after = folder / "images" / "after.png"
    before = folder / "images" / "before.png"
    lora = folder / "lora" / "pytorch_lora_weights.safetensors"
    failed = job is not None and mine and job.process.poll() not in (None, 0, 130)
    return View(
        folder=folder,
        config=_json(folder / "run.json").get("config", {}),
        records=read_metrics(folder),
        running=running,
        seconds_left=max(0.0, job.ends - time.monotonic()) if job is not None and running else 0.0,
        before=before if before.is_file() else None,
        latest=after if after.is_file() else images[-1] if images else None,
        lora=lora if lora.is_file() else None,
        report=_json(folder / "report.json"),
        fault=_last_line(beside(folder, ".log")) if failed else "",
    )


def end() -> None:
    """Let the training save, as the demo ends."""
    job = _JOB
    if job is None:
        return
    if job.process.poll() is None:
        log.info("the training in %s is saved", job.folder)
        _interrupt(job)
        with suppress(subprocess.TimeoutExpired):
            job.process.wait(PATIENCE)
    if job.process.poll() is None:
        job.process.kill()
    _let_go(job)


def _let_go(job: Job) -> None:
    """Close the pipe by which a training knows that its demo lives."""
    if job.process.stdin is not None:
        job.process.stdin.close()


atexit.register(end)


def main() -> None:
    """`align train`, saved and ended like by Ctrl-C when the demo that began it is gone."""

    def watch() -> None:
        os.read(0, 1)  # the file descriptor: `sys.stdin` is locked as Python ends
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=watch, daemon=True).start()
    runpy.run_module("align", run_name="__main__")


def _interrupt(job: Job) -> None:
    with suppress(ProcessLookupError):
        os.kill(job.process.pid, signal.SIGINT)


def beside(folder: Path, suffix: str) -> Path:
    """A file of the demo's own that belongs to a folder, and is removed with it."""
    folders.NOTES.mkdir(parents=True, exist_ok=True)
    return folders.NOTES / f"{folder.name}{suffix}"


def _digest(owner: str) -> str:
    return hashlib.sha256(owner.encode()).hexdigest()


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _last_line(path: Path) -> str:
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    except OSError:
        return ""
    return lines[-1][:300] if lines else ""


if __name__ == "__main__":
    main()
