"""Several processes over a prompt file: every prompt once, whoever is killed."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

TESTS = Path(__file__).parents[1]


def start(folder, rank, world, *more):
    folder.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "evaluation.child", str(folder), str(rank), str(world)]
    paths = os.environ | {"PYTHONPATH": f"{TESTS.parent}{os.pathsep}{TESTS}"}
    return subprocess.Popen([*command, *more], cwd=TESTS, env=paths, stderr=subprocess.PIPE)


def finish(process):
    error = process.communicate(timeout=300)[1]
    assert process.returncode == 0, error.decode()[-2000:]


def done(folder):
    return sorted((folder / "run" / "prompts").glob("[0-9]*.json"))


def results(folder):
    """All that does not depend on time."""
    keys = ("method", "budget", "repeat", "seed", "image", "scores")
    rows = [json.loads(file.read_text()) for file in done(folder)]
    return [(r["index"], r["prompt"], [[o[k] for k in keys] for o in r["results"]]) for r in rows]


def test_two_processes_one_killed_and_restarted_equal_one(tmp_path):
    first, second = (start(tmp_path / "two", rank, 2) for rank in (0, 1))
    limit = time.monotonic() + 240
    while len(done(tmp_path / "two")) < 3 and time.monotonic() < limit:
        time.sleep(0.01)
    os.kill(second.pid, signal.SIGKILL)
    before = {file.name: file.stat().st_mtime_ns for file in done(tmp_path / "two")}
    second.communicate()
    again = start(tmp_path / "two", 1, 2, "resume")
    finish(first)
    finish(again)
    alone = start(tmp_path / "one", 0, 1)
    finish(alone)
    assert 3 <= len(before) < 12  # the kill came in time
    assert len(done(tmp_path / "two")) == 12
    after = {file.name: file.stat().st_mtime_ns for file in done(tmp_path / "two")}
    assert before.items() <= after.items()  # nothing was done again
    assert results(tmp_path / "two") == results(tmp_path / "one")
    reports = [json.loads((tmp_path / n / "run/report.json").read_text()) for n in ("one", "two")]
    assert reports[0]["figures"][0]["overall"] == reports[1]["figures"][0]["overall"]
    # the killed process may have left a picture under the temporary name it was writing it to
    images = [sorted((tmp_path / n / "run/images").glob("[0-9]*.png")) for n in ("one", "two")]
    assert [p.name for p in images[0]] == [p.name for p in images[1]]
