"""NAR on one's own pictures, start to end: a folder of two classes, three commands, the clock.

    python scripts/bench/nar_own_data.py [--out runs/own-data]

Writes 500 pictures into two folders (red circles and blue squares, of any size and place), runs
`align nar tokenizer`, `align nar train` and `align nar generate` as a user would, prints each
command with its seconds, and counts how many of the drawn pictures show the class asked for: by
their colour alone, and by exactly one object of its colour and shape.
"""

import argparse
import random
import shlex
import subprocess
import sys
import time
from pathlib import Path

from PIL import Image

from align.runs.pictures import read_image
from align.scenes import parse, read
from align.scenes.render import layout, render

CLASSES = {"circles": ("red", "circle"), "squares": ("blue", "square")}


def make_pictures(folder: Path, count: int, seed: int) -> None:
    """`count` pictures of one object each, half of each class, in a folder per class."""
    rng = random.Random(seed)
    for number in range(count):
        name = list(CLASSES)[number % len(CLASSES)]
        scene = layout(parse("a {} {}".format(*CLASSES[name])), rng)
        path = folder / name / f"{number:04d}.png"
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


def right(folder: Path, each: int) -> dict[str, tuple[int, int]]:
    """By class, which come one after the other: pictures whose objects are of its colour, and those
    that show exactly one object, of its colour and shape."""
    counts = dict.fromkeys(CLASSES, (0, 0))
    for number, path in enumerate(sorted(folder.glob("images/*.png"))):
        seen = [o for o in read(read_image(path).numpy()) if o.color is not None]
        name = list(CLASSES)[number // each]
        color, shape = CLASSES[name]
        colored = bool(seen) and all(o.color == color for o in seen)
        exact = [(o.color, o.shape) for o in seen] == [(color, shape)]
        counts[name] = counts[name][0] + colored, counts[name][1] + exact
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
        run(
            f"align nar tokenizer --data {out}/pictures --patch 8 --steps 600 --out {out}/tokenizer"
        ),
        run(
            f"align nar train --data {out}/pictures --tokenizer {out}/tokenizer "
            f"--steps 2000 --max-minutes 5 --out {out}/model"
        ),
        run(
            f"align nar generate --model {out}/model/pipeline --class-labels {' '.join(CLASSES)} "
            f"--num-images {args.each} --guidance-scale 4 --temperature 1 --out {out}/drawn"
        ),
    ]
    found = right(args.out / "drawn", args.each)
    print(f"{sum(seconds):.0f} s in all; of {args.each} pictures of each class")
    for name, (colored, exact) in found.items():
        print(f"  {name}: {colored} of its colour, {exact} of one object of its colour and shape")


if __name__ == "__main__":
    main()
