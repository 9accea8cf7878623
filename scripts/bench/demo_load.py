"""Visitors of a running demo, all at once: errors, answers, and the server's memory.

    python scripts/bench/demo_load.py [--visitors 20] [--minutes 5]

Starts `align demo` in an empty folder. Each visitor is a `gradio_client` that generates, searches
noise, draws by NAR (where its model is installed), compares, and looks at the training, in a random
order. Being told that the queue is full counts as a polite answer; every other error, and every
accepted job that is not done, ends the script with status 1.
"""

import argparse
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

import psutil
from demo_hostile import demo
from gradio_client import Client

from align.demo.choices import nar_models

POLITE = ("queue is full", "one at a time", "queue")
WARM_UP = 0.25  # of the time; the memory at its end is what the last is compared with
PROMPTS = ("three green stars", "a red circle to the left of a blue square", "a large black ring")


def main() -> int:
    """Let the visitors come."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--visitors", type=int, default=20)
    parser.add_argument("--minutes", type=float, default=5.0)
    options = parser.parse_args()
    counts, errors = Counter(), []
    with tempfile.TemporaryDirectory() as folder, demo(Path(folder)) as (address, log):
        server = next(p for p in psutil.process_iter() if runs(p, address.rpartition(":")[2]))
        started = time.monotonic()
        end = started + 60 * options.minutes
        visitors = [
            threading.Thread(target=visit, args=(address, end, seed, counts, errors))
            for seed in range(options.visitors)
        ]
        for visitor in visitors:
            visitor.start()
        time.sleep(60 * options.minutes * WARM_UP)
        warm = memory(server)
        while any(visitor.is_alive() for visitor in visitors):
            time.sleep(1)
        last, tracebacks = memory(server), log.read_text().count("Traceback")
        seconds = time.monotonic() - started
    for kind, count in sorted(counts.items()):
        print(f"{count:5d}  {kind}")
    print(
        f"{options.visitors} visitors, {seconds:.0f} s; "
        f"{len(errors)} errors, {tracebacks} tracebacks"
    )
    print(f"memory after warm-up {warm:.0f} MB, at the end {last:.0f} MB: {last / warm:.2f} times")
    for error in errors[:10]:
        print(f"  {error}")
    return bool(errors or tracebacks)


def runs(process: psutil.Process, port: str) -> bool:
    """Whether a process is the demo at this port."""
    try:
        return port in process.cmdline() and "demo" in process.cmdline()
    except psutil.Error:
        return False


def memory(process: psutil.Process) -> float:
    """Resident memory in MB; a training, a process of its own, is not counted."""
    return process.memory_info().rss / 1e6


def visit(address: str, end: float, seed: int, counts: Counter, errors: list[str]) -> None:
    """One visitor, until the time is over."""
    chance = random.Random(seed)
    client = Client(address, verbose=False, httpx_kwargs={"timeout": 600})
    actions = [generate, optimize, compare, look, *([nar] if nar_models() else [])]
    while time.monotonic() < end:
        action = chance.choice(actions)
        try:
            action(client, chance)
            counts[f"{action.__name__}: done"] += 1
        except Exception as error:
            text = " ".join(str(error).split())
            polite = any(part in text.lower() for part in POLITE)
            counts[f"{action.__name__}: {'told to wait' if polite else 'failed'}"] += 1
            if not polite:
                errors.append(f"{action.__name__}: {text[:200]}")
        time.sleep(chance.uniform(0, 1))


def generate(client: Client, chance: random.Random) -> None:
    """One or two pictures."""
    client.predict(
        prompt=chance.choice(PROMPTS), num_inference_steps=4, num_images=chance.choice((1, 2)),
        api_name="/generate",
    )  # fmt: skip


def optimize(client: Client, chance: random.Random) -> None:
    """A small search."""
    client.predict(
        prompt=chance.choice(PROMPTS), method=chance.choice(("bon", "carinox")), budget=4,
        num_inference_steps=2, api_name="/optimize",
    )  # fmt: skip


def compare(client: Client, chance: random.Random) -> None:
    """Two methods."""
    client.predict(
        prompt=chance.choice(PROMPTS), chosen=["base", "bon"], budget=2, num_inference_steps=2,
        api_name="/compare",
    )  # fmt: skip


def nar(client: Client, chance: random.Random) -> None:
    """A picture by wavefronts."""
    client.predict(prompt=chance.choice(PROMPTS), num_images=1, compare=False, api_name="/nar")


def look(client: Client, chance: random.Random) -> None:
    """How far the training is."""
    client.predict(api_name="/training")


if __name__ == "__main__":
    sys.exit(main())
