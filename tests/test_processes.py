"""The environment of launchers: partners that never come, variables left over, compiling."""

import os
import signal
import socket
import subprocess
import sys
import time

import pytest
import torch
from accelerate.utils import DynamoBackend

from align.evaluation.work import process
from align.models.processes import is_first, open_accelerator

LAUNCHER = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
WAITING = """
from align.models.processes import open_accelerator
from align.training.stopping import stop_signals
with stop_signals():
    open_accelerator(cpu=True)
"""


@pytest.fixture(autouse=True)
def _no_launcher(monkeypatch):
    for name in LAUNCHER:
        monkeypatch.delenv(name, raising=False)


def test_a_process_that_waits_for_its_partners_ends_at_the_first_signal():
    waiting = []
    for number in (signal.SIGTERM, signal.SIGINT):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        variables = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_PORT": str(port)}
        environment = os.environ | variables | {"MASTER_ADDR": "localhost", "OMP_NUM_THREADS": "1"}
        child = subprocess.Popen(
            [sys.executable, "-c", WAITING], env=environment, stderr=subprocess.DEVNULL
        )
        waiting.append((child, number, port))
    for child, number, port in waiting:
        limit = time.monotonic() + 600
        while time.monotonic() < limit:  # until it listens for the other one
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        time.sleep(0.3)
        assert child.poll() is None
        child.send_signal(number)
        try:
            assert child.wait(5) == -number
        finally:
            child.kill()


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        (
            {"LOCAL_RANK": "0"},
            "has LOCAL_RANK of a launcher but not RANK, WORLD_SIZE, MASTER_A",
        ),
        ({"LOCAL_RANK": "0", "RANK": "0", "WORLD_SIZE": "1"}, "but not MASTER_ADDR: `unset LOCAL_"),
        ({"WORLD_SIZE": "2", "MASTER_ADDR": "localhost"}, "but not RANK: "),
    ],
)
def test_a_launchers_variables_left_over_are_named(monkeypatch, variables, message):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=message):
        open_accelerator(cpu=True)


def test_a_rank_without_other_processes_is_the_first(monkeypatch):
    monkeypatch.setenv("RANK", "1")
    assert is_first()
    assert process() == (0, 1)
    assert open_accelerator(cpu=True).is_main_process
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert not is_first()
    assert process() == (1, 2)


def test_nothing_is_compiled_unasked(monkeypatch):
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "INDUCTOR")
    accelerator = open_accelerator(cpu=True)
    assert accelerator.state.dynamo_plugin.backend == DynamoBackend.NO
    model = torch.nn.Linear(2, 2)
    assert accelerator.prepare(model) is model


def test_the_callers_handlers_are_back(monkeypatch):
    def handler(number, frame): ...

    former = signal.signal(signal.SIGTERM, handler)
    try:
        open_accelerator(cpu=True)
        assert signal.getsignal(signal.SIGTERM) is handler
    finally:
        signal.signal(signal.SIGTERM, former)
