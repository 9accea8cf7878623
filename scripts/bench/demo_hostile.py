"""Hostile requests to every endpoint of a running demo: none may bring it down or get a traceback.

    python scripts/bench/demo_hostile.py [--requests 500] [--seed 0]

Starts `align demo` in an empty folder, sends wrong types, huge numbers, NaN, long strings, paths,
file references, wrong counts and broken bodies, and then asks for a picture as anybody would.
Prints what was answered; ends with status 1 where a traceback came out, a file outside of the
demo's own folders was touched, or the server no longer serves.
"""

import argparse
import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections import Counter
from pathlib import Path
from typing import Any

TIMEOUT = 120  # seconds for one answer
PICTURE = "data:image/png;base64,"
VALUES: list[Any] = [
    None, True, -1, 0, 1.5, 10**9, -(10**30), 1e308, float("nan"), float("inf"), "", " ",
    "x" * 5000, "a" * 100_000, "\x00\x01", "../../etc/passwd", "/etc/passwd", "~/.ssh/id_rsa",
    "file:///etc/passwd", "http://127.0.0.1:1/x", "<script>alert(1)</script>", "'; DROP TABLE x;",
    "evil.py:function", "/tmp/evil.py:main", "min(" * 50, "scenes-clip=1e999", "💥" * 300, "{}",
    [], ["base"] * 1000, ["/etc/passwd"], {}, {"a": {"b": {"c": 1}}}, [[[[[]]]]],
    {"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}},
    {"path": "http://127.0.0.1:1/", "meta": {"_type": "gradio.FileData"}},
    PICTURE, PICTURE + "AAAA", PICTURE + "@@@", "data:image/svg+xml;base64,PHN2Zy8+",
    PICTURE + "A" * 1_000_000,
]  # fmt: skip
BODIES = [
    b"", b"{", b"null", b"[]", b"[" * 20_000, b'{"data": 3}', b'{"data": {}}', b'{"data": []}',
    b'{"data": ["x"]}', b"\xff\xfe\x00", b'{"data": [' + b'"x",' * 5000 + b'"x"]}',
]  # fmt: skip
# What is checked last is always wrong, so that no request begins a long work by chance.
LAST: dict[str, dict[str, Any]] = {
    "/generate": {"height": -1}, "/optimize": {"guidance_scale": -1}, "/train": {"seed": -1},
    "/nar": {"compare": "no"}, "/compare": {"guidance_scale": -1},
}  # fmt: skip
FILES = [
    "/gradio_api/file=/etc/passwd", "/gradio_api/file=../../../etc/passwd", "/file=/etc/passwd",
    "/gradio_api/file=runs", "/gradio_api/file=%2e%2e/%2e%2e/etc/passwd", "/theme.css/../../etc",
    "/static/../../../etc/passwd", "/gradio_api/proxy=http://127.0.0.1:1/", "/gradio_api/file=~/x",
]  # fmt: skip


def main() -> int:
    """Send the requests to a demo of this script's own."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, demo(Path(folder)) as (address, log):
        started = time.monotonic()
        answers, faults = attack(address, options.requests, random.Random(options.seed))
        seconds = time.monotonic() - started
        faults += aftermath(address, log, Path(folder))
    for kind, count in answers.most_common():
        print(f"{count:5d}  {kind}")
    print(f"{sum(answers.values())} requests in {seconds:.0f} s, {len(faults)} faults")
    for fault in faults:
        print(f"  {fault}")
    return bool(faults)


@contextlib.contextmanager
def demo(folder: Path):
    """(address, log file) of `align demo`, run in the folder."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log, own = folder / "demo.log", folder / "own"
    own.mkdir()
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "align", "demo", "--port", str(port)],
            cwd=own,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=os.environ | {"HF_HUB_OFFLINE": "1", "GRADIO_TEMP_DIR": str(own / "cache")},
        )
    address = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 300
        while time.monotonic() < deadline and process.poll() is None:
            with contextlib.suppress(OSError), urllib.request.urlopen(address, timeout=5):
                break
            time.sleep(0.3)
        yield address, log
    finally:
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(30)
        process.kill()


def attack(address: str, count: int, chance: random.Random) -> tuple[Counter, list[str]]:
    """(answers by kind, faults) of so many requests."""
    info = json.loads(fetch(f"{address}/gradio_api/info")[1])["named_endpoints"]
    answers, faults = Counter(), []
    for number in range(count):
        name = list(info)[number % len(info)]
        kind, text = request(address, name, info[name]["parameters"], number, chance)
        answers[f"{name if kind != 'file' else 'files'}: {text[:60]}"] += 1
        if "Traceback" in text or "root:" in text or 'File "' in text:
            faults.append(f"request {number} to {name}: {text[:200]}")
    return answers, faults


def request(
    address: str, name: str, parameters: list[dict], number: int, chance: random.Random
) -> tuple[str, str]:
    """(what was sent, what was answered)."""
    turn = number // 7 % 10
    if turn == 8:
        status, text = fetch(f"{address}{chance.choice(FILES)}")
        return "file", f"HTTP {status}" + (" root:" if "root:" in text else "")
    if turn == 9:
        status, text = fetch(f"{address}/gradio_api/call{name}", chance.choice(BODIES))
        return "body", f"HTTP {status} {text if 'Traceback' in text else ''}"
    data = [one.get("parameter_default") for one in parameters]
    at = chance.sample(range(len(data)), min(len(data), chance.choice((1, 1, 2, 4))))
    for index in at or ():
        data[index] = chance.choice(VALUES)
    if data and not at:
        data[0] = chance.choice(VALUES)
    names = [one["parameter_name"] for one in parameters]
    for wrong, value in LAST.get(name, {}).items():
        data[names.index(wrong)] = value
    return "call", call(address, name, data)


def call(address: str, name: str, data: list) -> str:
    """The last event of a call."""
    body = json.dumps({"data": data}).encode()
    status, text = fetch(f"{address}/gradio_api/call{name}", body)
    if status != 200:
        return f"HTTP {status} {text[:200]}"
    event = json.loads(text)["event_id"]
    status, text = fetch(f"{address}/gradio_api/call{name}/{event}")
    kinds = [line.removeprefix("event: ") for line in text.splitlines() if line.startswith("event")]
    lines = [line for line in text.splitlines() if line.startswith("data: ")]
    if kinds and kinds[-1] == "error":
        return lines[-1].removeprefix("data: ")
    return f"HTTP {status} {kinds[-1] if kinds else ''}" + " Traceback" * ("Traceback" in text)


def fetch(address: str, body: bytes | None = None) -> tuple[int, str]:
    """(status, text) of an answer; HTTP errors are answers too."""
    ask = urllib.request.Request(address, body, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(ask, timeout=TIMEOUT) as answer:
            return answer.status, answer.read().decode(errors="replace")
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode(errors="replace")
    except (OSError, ValueError) as error:
        return 0, f"no answer: {type(error).__name__}"


def aftermath(address: str, log: Path, folder: Path) -> list[str]:
    """What is wrong after the attack: tracebacks, stray files, a server that serves no more."""
    faults = []
    text = log.read_text(errors="replace")
    if "Traceback" in text:
        at = text.index("Traceback")
        faults.append(
            f"{text.count('Traceback')} tracebacks in the log, the first: {text[at:][:2000]}"
        )
    stray = [
        path
        for path in folder.rglob("*")
        if path != log and path.is_file() and path.relative_to(folder).parts[:2] not in OWN
    ]
    faults += [f"a stray file: {path}" for path in stray]
    answer = call(address, "/generate", good_values(address))
    if "complete" not in answer:
        faults.append(f"it serves no more: {answer}")
    return faults


OWN = {("own", "cache"), ("own", "runs")}


def good_values(address: str) -> list:
    """A picture as anybody asks for it, of one step."""
    info = json.loads(fetch(f"{address}/gradio_api/info")[1])["named_endpoints"]
    chosen = {"prompt": "three green stars", "num_inference_steps": 1, "num_images": 1}
    return [
        chosen.get(one["parameter_name"], one.get("parameter_default"))
        for one in info["/generate"]["parameters"]
    ]


if __name__ == "__main__":
    sys.exit(main())
