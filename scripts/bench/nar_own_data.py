"""NAR on one's own pictures, start to end: a folder of two classes, three commands, the clock.

    python scripts/bench/nar_own_data.py [--out runs/own-data]

Writes 500 pictures into two folders (circles and stars of any colour), then runs `align nar
tokenizer`, `align nar train` and `align nar generate` as a user would, prints each command with its
seconds, and counts how many of the drawn pictures show one object of the class asked for.
"""

import argparse
import random
import shlex
import subprocess
import sys
import time
from pathlib import Path

from PIL import Image

from align.calibrate import read_image
from align.scenes import parse, read
from align.scenes.grammar import COLORS
from align.scenes.render import layout, render

CLASSES = ("circle", "star")


def make_pictures(folder: Path, count: int, seed: int) -> None:
    """`count` pictures of one object each, half of each class, in a folder per class."""
    rng = random.Random(seed)
    for number in range(count):
        shape = CLASSES[number % len(CLASSES)]
        scene = layout(parse(f"a {rng.choice(list(COLORS))} {shape}"), rng)
        path = folder / shape / f"{number:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(render(scene)).save(path)


def run(words: str) -> float:
    """Run one `align` command; returns its seconds."""
    print(f"$ {words}", flush=True)
    started = time.monotonic()
    command = [sys.executable, "-m", *shlex.split(words)]
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
    seconds = time.monotonic() - started
    print(f"  {seconds:.0f} s", flush=True)
    return seconds


def right(folder: Path, each: int) -> dict[str, int]:
    """Pictures of each class that show one object, of that class; they come class by class."""
    counts = dict.fromkeys(CLASSES, 0)
    for number, path in enumerate(sorted(folder.glob("images/*.png"))):
        seen = read(read_image(path).numpy())
        shape = CLASSES[number // each]
        counts[shape] += [o.shape for o in seen] == [shape]
    return counts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/own-data"))
    parser.add_argument("--pictures", type=int, default=500)
    parser.add_argument("--each", type=int, default=32, help="pictures drawn of each class")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    data = args.out / "pictures"
    make_pictures(data, args.pictures, args.seed)
    out = shlex.quote(str(args.out))
    seconds = [
        run(f"align nar tokenizer --data {out}/pictures --steps 600 --out {out}/tokenizer"),
        run(
            f"align nar train --data {out}/pictures --tokenizer {out}/tokenizer "
            f"--steps 500 --max-minutes 5 --out {out}/model"
        ),
        run(
            f"align nar generate --model {out}/model/pipeline --class-labels {' '.join(CLASSES)} "
            f"--num-images {args.each} --guidance-scale 2 --out {out}/drawn"
        ),
    ]
    found = right(args.out / "drawn", args.each)
    print(f"{sum(seconds):.0f} s in all; pictures that show one object, of the class asked for:")
    for shape, count in found.items():
        print(f"  {shape}: {count} of {args.each}")


if __name__ == "__main__":
    main()
