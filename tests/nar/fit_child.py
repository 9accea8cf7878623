"""`fit_child.py FOLDER PICTURES`: trainings in two processes each, something befalling one of them.

Forks both of every training, so that the imports are paid once; prints, as JSON, what each
process raised and how many seconds it took from the mishap to its end.
"""

import json
import os
import signal
import socket
import sys
import threading
import time
from pathlib import Path

import torch
from fit_helpers import linear_run, nan_gradient
from torch import nn

from align.cli import leave
from align.config.nar import NarTokenizerConfig, NarTrainConfig
from align.nar.training import tokenizer as tokenizer_module
from align.nar.training.fit import open_processes, train_on_pictures
from align.nar.training.tokenizer import train_tokenizer
from align.nar.training.train import train_nar

COMMON = {
    "steps": 2000, "batch_size": 4, "checkpoint_every": 1, "mixed_precision": "no",
    "device": "cpu", "threads": 1,
}  # fmt: skip
TOKENIZER = {"image_size": 8, "patch": 2, "width": 4, "levels": (5, 5)}


def linear(folder: Path, fault) -> None:
    """Updates of a linear layer; `fault(loss, update, rank)` makes of its loss what it likes."""
    config = NarTokenizerConfig(**COMMON | {"steps": 5}, out=str(folder))
    accelerator = open_processes(config)
    run = linear_run(config, folder, accelerator)

    def loss_fn(model: nn.Module, update: int, indices: list[int]):
        loss = model(torch.ones(len(indices), 3)).square().mean()
        return fault(loss, update, accelerator.process_index), {}

    train_on_pictures(run, loss_fn, 8)


def nan_loss(loss, update, rank):
    return loss * float("nan") if (update, rank) == (2, 1) else loss


def gradient(loss, update, rank):
    return nan_gradient(loss) if (update, rank) == (2, 1) else loss


def bad_pixels(folder: Path, pictures: str) -> None:
    """`align nar tokenizer`, one process of which reads pixels that are no numbers."""
    loader = tokenizer_module.pixel_loader

    def spoiled(*arguments):
        load, calls = loader(*arguments), []

        def pixels(indices):
            calls.append(indices)
            images = load(indices)
            return images * float("nan") if len(calls) == 3 else images

        return pixels

    if os.environ["RANK"] == "1":
        tokenizer_module.pixel_loader = spoiled
    train_tokenizer(NarTokenizerConfig(data=pictures, out=str(folder), **COMMON | TOKENIZER))


def stopped(folder: Path, train) -> None:
    """A training, one process of which gets SIGTERM after its second update."""

    def stop():
        file = folder / "metrics.jsonl"
        while not (file.exists() and file.read_text().count("\n") >= 2):
            time.sleep(0.01)
        (folder / "mishap").touch()
        os.kill(os.getpid(), signal.SIGTERM)

    if os.environ["RANK"] == "1":
        threading.Thread(target=stop, daemon=True).start()
    train()


def process(rank: int, port: int, run, report: Path) -> None:
    """The life of one process."""
    variables = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_PORT": port}
    os.environ.update({k: str(v) for k, v in variables.items()}, MASTER_ADDR="127.0.0.1")
    try:
        run()
        outcome = "done"
    except BaseException as error:
        outcome = f"{type(error).__name__}: {error}"
    report.write_text(json.dumps([outcome, time.time()]))
    leave(0)


def pair(folder: Path, run) -> list:
    """What both processes said, with the time from the mishap (or the last file) to their end."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = []
    for rank in (0, 1):
        child = os.fork()  # this process never computes, so forking it is safe
        if child == 0:
            process(rank, port, run, folder.with_name(f"{folder.name}-{rank}.json"))
        children.append(child)
    limit, running = time.monotonic() + 60, set(children)
    while running and time.monotonic() < limit:
        running -= {c for c in running if os.waitpid(c, os.WNOHANG)[0]}
        time.sleep(0.05)
    for child in running:  # it hangs
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    mishap = folder / "mishap"
    since = (mishap if mishap.exists() else folder / "metrics.jsonl").stat().st_mtime
    files = [folder.with_name(f"{folder.name}-{rank}.json") for rank in (0, 1)]
    ends = [json.loads(f.read_text()) if f.exists() else ["hung", since + 60] for f in files]
    return [(outcome, end - since) for outcome, end in ends]


def main(root: Path, pictures: str) -> None:
    torch.set_num_threads(1)
    tokenizer = {"data": pictures, **COMMON | TOKENIZER}
    small = {"width": 8, "num_layers": 1, "num_heads": 1, "condition": "class", **COMMON}

    def train() -> None:
        out = str(root / "train")
        train_nar(NarTrainConfig(data=pictures, tokenizer=str(root / "small"), out=out, **small))

    def make() -> None:
        train_tokenizer(NarTokenizerConfig(**tokenizer, out=str(root / "tokenizer")))

    child = os.fork()
    if child == 0:
        made = tokenizer | {"steps": 1, "out": str(root / "small")}
        train_tokenizer(NarTokenizerConfig(**made))
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    runs = {
        "loss": lambda: linear(root / "loss", nan_loss),
        "gradient": lambda: linear(root / "gradient", gradient),
        "pixels": lambda: bad_pixels(root / "pixels", pictures),
        "tokenizer": lambda: stopped(root / "tokenizer", make),
        "train": lambda: stopped(root / "train", train),
    }
    sys.stdout.write(json.dumps({name: pair(root / name, run) for name, run in runs.items()}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
