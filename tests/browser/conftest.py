"""A running demo, a headless Chromium, and a folder for screenshots."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from demo_helpers import nar_model
from playwright.sync_api import expect, sync_playwright

ARTIFACTS = Path(__file__).parents[1] / "artifacts"
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
PATIENCE = 300  # seconds for what takes two on a machine that has nothing else to do


def pytest_collection_modifyitems(items):
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.browser)


@pytest.fixture(scope="session")
def artifacts():
    """The folder of the screenshots and the server's log."""
    ARTIFACTS.mkdir(exist_ok=True)
    return ARTIFACTS


@contextlib.contextmanager
def serving(folder, log, *flags):
    """The address of `align demo`, run in a folder of its own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"http://127.0.0.1:{port}/"
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "align", "demo", "--port", str(port), *flags],
            cwd=folder,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=os.environ | {"HF_HUB_OFFLINE": "1", "GRADIO_TEMP_DIR": str(folder / "cache")},
        )
    try:
        wait_for(address, process, log)
        yield address
    finally:
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(90)  # a training may have to be saved
        process.kill()
        process.wait()


@pytest.fixture(scope="session")
def server(tmp_path_factory, artifacts):
    """(address, log file) of the demo."""
    worker = os.environ.get("PYTEST_XDIST_WORKER", "main")  # each has a server of its own
    log = artifacts / f"demo-{worker}.log"
    with serving(tmp_path_factory.mktemp("demo"), log) as address:
        yield address, log


@pytest.fixture(scope="session")
def nar_server(request, tmp_path_factory, artifacts):
    """(address, log file, NAR model): where no NAR model is shipped, a demo that takes a folder."""
    name = nar_model(tmp_path_factory.mktemp("nar") / "tiny")
    if name.startswith("embedded/"):
        yield *request.getfixturevalue("server"), name
        return
    log = artifacts / f"demo-nar-{os.environ.get('PYTEST_XDIST_WORKER', 'main')}.log"
    with serving(tmp_path_factory.mktemp("demo-nar"), log, "--allow-any-model") as address:
        yield address, log, name


def wait_for(address, process, log):
    """Return when the server answers."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text()
        with contextlib.suppress(OSError), urllib.request.urlopen(address, timeout=5) as answer:
            assert answer.status == 200
            return
        time.sleep(0.2)
    pytest.fail(f"no answer from {address}: {log.read_text()}")


@pytest.fixture(scope="session")
def chromium():
    """Debian's Chromium, headless."""
    path = shutil.which("chromium") or shutil.which("chromium-browser")
    if path is None:
        pytest.skip("Chromium is not installed: apt-get install chromium")
    expect.set_options(timeout=PATIENCE * 1000)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def open_page(chromium, server):
    """Opens the demo in a window of its own: `open_page(width, height)`."""
    contexts = []

    def opened(width=1280, height=900, address=server[0], query="", **settings):
        context = chromium.new_context(viewport={"width": width, "height": height}, **settings)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(PATIENCE * 1000)
        page.faults, page.foreign = [], []
        page.on("pageerror", lambda fault: page.faults.append(str(fault)))
        page.on(
            "request",
            lambda request: (
                None
                if request.url.startswith((address, "data:", "blob:"))
                else page.foreign.append(request.url)
            ),
        )
        page.goto(address + query)
        page.locator("button.run").locator("visible=true").first.wait_for()
        return page

    yield opened
    for context in contexts:
        context.close()
