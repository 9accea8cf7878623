"""What OpenMP's threads and their way of waiting cost, alone and beside a busy process.

    python scripts/bench/threads.py
    python scripts/bench/threads.py --work quickstart --repeats 1

Times the embedded models on the CPU: a batch of pictures (generate), the search of one noise
(optimize), an update of the LoRA (train), or the whole `align quickstart`. Each setting runs in a
process of its own, the models loaded and warmed up before the clock starts (quickstart: all of it);
settings take turns, so that a machine that slows down does not favour one of them. The busy process
is this script's own: an endless loop in Python. Prints seconds (the least of the repeats, which
other work on the machine disturbs least) and their ratio to the fastest setting alone. Run it on a
machine that does nothing else.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# GNU's OpenMP, which PyTorch's wheels for Linux bring, spins before it sleeps unless PASSIVE.
SETTINGS = {
    "1 thread": {"OMP_NUM_THREADS": "1"},
    "2 threads": {"OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": ""},
    "2 threads, passive": {"OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "PASSIVE"},
}
WORK = ("generate", "optimize", "train", "quickstart")
PROMPT = "a red circle to the left of a blue square"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", nargs="+", choices=WORK, default=list(WORK[:3]))
    parser.add_argument("--busy", type=int, default=1, help="busy processes beside")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--inside", choices=WORK[:3], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.inside:
        print(f"seconds {inside(options.inside):.3f}")
        return
    load = f", load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    print(f"{os.cpu_count()} processors{load}; beside {options.busy} busy processes")
    for work in options.work:
        times: dict[tuple[str, int], list[float]] = {}
        for _ in range(options.repeats):
            for busy in (0, options.busy):
                for name in SETTINGS:
                    with busy_processes(busy):
                        times.setdefault((name, busy), []).append(seconds_of(work, name))
        least = {key: min(values) for key, values in times.items()}
        fastest = min(least[name, 0] for name in SETTINGS)
        for name in SETTINGS:
            alone, beside = least[name, 0], least[name, options.busy]
            print(
                f"{work:10} {name:20} alone {alone:7.2f} s ({alone / fastest:4.2f})   "
                f"beside {beside:7.2f} s ({beside / fastest:4.2f}, {beside / alone:4.2f} of alone)",
                flush=True,
            )


@contextmanager
def busy_processes(count: int) -> Iterator[None]:
    """`count` processes that want a processor each."""
    loop = [sys.executable, "-c", "while True: pass"]
    processes = [subprocess.Popen(loop) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def seconds_of(work: str, name: str) -> float:
    """The time of a piece of work in a process with these settings."""
    environment = {key: value for key, value in {**os.environ, **SETTINGS[name]}.items() if value}
    if "OMP_WAIT_POLICY" not in SETTINGS[name]:
        environment.pop("OMP_WAIT_POLICY", None)
    if work == "quickstart":
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-m", "align", "quickstart", "--out", f"{folder}/run"]
            started = time.perf_counter()
            subprocess.run(command, env=environment, capture_output=True, check=True)
            return time.perf_counter() - started
    command = [sys.executable, __file__, "--inside", work]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return float(done.stdout.split()[-1])


def inside(work: str) -> float:
    """Seconds of one piece of work, after the same work once to warm up."""
    import torch

    import align

    if work == "train":
        with tempfile.TemporaryDirectory() as folder:
            config = align.TrainConfig(
                model="embedded/scenes",
                reward="scenes-clip",
                prompts="scenes-heldout-a",
                preset="embedded",
                steps=4,
                tracker="none",
                sample_every=0,
                checkpoint_every=0,
                device="cpu",
                out=str(Path(folder) / "run"),
            )
            records = align.train(config).metrics
        return min(record["seconds"] for record in records[1:])
    pipe = align.load_pipeline("embedded/scenes", device="cpu")
    reward = align.load_reward("scenes-detector=2,scenes-clip", "cpu")

    def once() -> None:
        if work == "generate":
            settings = {"num_inference_steps": 10, "guidance_scale": 3.0}
            with torch.no_grad():
                align.generate(pipe, [PROMPT] * 4, seed=0, **settings)
            return
        search = align.OptimizeConfig(
            budget="8images", backward_cost=2.0, num_inference_steps=8, guidance_scale=3.0
        )
        for _ in align.optimize(pipe, PROMPT, reward, search):
            pass

    once()
    started = time.perf_counter()
    once()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
