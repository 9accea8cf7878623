"""A raster model converted to NAR against NAR from scratch, at equal extra training.

    python scripts/bench/nar_own_data.py --out runs/own-data      # pictures and tokenizer
    python scripts/bench/nar_convert.py --data runs/own-data [--steps 125 250 500 1000]

Trains our raster model once, `--raster-steps` updates. Then, for each of `--steps`, converts it by
`align nar convert` and trains a NAR model of the same size from scratch, with as many updates of as
many pictures at the same learning rate. Printed for each, and for the raster model: the
cross-entropy of a token of pictures that no training saw, how many drawn pictures show one object
of the class asked for, and the seconds of `align nar generate`.
"""

import argparse
import json
import random
import shlex
from pathlib import Path

import torch
import torch.nn.functional as F
from nar_own_data import CLASSES, make_pictures, right, run

from align.nar.load import load_nar_pipeline
from align.runs.pictures import read_image


@torch.no_grad()
def held_out_loss(pipeline: Path, pictures: Path) -> float:
    """Mean cross-entropy of a token, in nats, of the pictures under their folder's class."""
    pipe = load_nar_pipeline(str(pipeline))
    losses = []
    for path in sorted(pictures.rglob("*.png")):
        ids = pipe.image_tokenizer.encode(read_image(path)[None])
        label = pipe.class_ids([path.parent.name])
        logits = pipe.transformer(ids, torch.tensor(label))
        losses.append(F.cross_entropy(logits.flatten(0, 1), ids.flatten()).item())
    return sum(losses) / len(losses)


def look(folder: Path, fresh: Path, each: int) -> dict[str, float]:
    """Loss on fresh pictures, drawn pictures that are right, and seconds of drawing them."""
    drawn = folder.with_name(f"{folder.name}-drawn")
    seconds = run(
        f"align nar generate --model {shlex.quote(str(folder))}/pipeline --class-labels "
        f"{' '.join(CLASSES)} --num-images {each} --guidance-scale 1.5 --temperature 0.7 "
        f"--overwrite --out {shlex.quote(str(drawn))}"
    )
    exact = sum(exact for _, exact in right(drawn, each).values())
    found = {"loss": held_out_loss(folder / "pipeline", fresh), "right": exact, "seconds": seconds}
    print(f"  {found['loss']:.3f} nats a token, {exact} of {2 * each} right", flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("runs/own-data"))
    parser.add_argument("--raster-steps", type=int, default=2000)
    parser.add_argument("--steps", type=int, nargs="+", default=[125, 250, 500, 1000])
    parser.add_argument("--learning-rate", type=float, default=1e-3, help="of both")
    parser.add_argument("--each", type=int, default=32, help="pictures drawn of each class")
    parser.add_argument("--fresh", type=int, default=64, help="pictures that the loss is taken of")
    args = parser.parse_args()
    fresh = args.data / "fresh"
    make_pictures(fresh, args.fresh, seed=random.Random("fresh").getrandbits(30))
    data = shlex.quote(str(args.data))
    shared = f"--data {data}/pictures --overwrite --ema-decay 0.995"
    shared += f" --learning-rate {args.learning_rate:g}"
    train = f"align nar train {shared} --tokenizer {data}/tokenizer"
    raster = args.data / "raster"
    run(f"{train} --decoding raster --steps {args.raster_steps} --out {data}/raster")
    found = {"raster": look(raster, fresh, args.each)}
    for steps in args.steps:
        converted, scratch = (args.data / f"{name}-{steps}" for name in ("converted", "scratch"))
        run(
            f"align nar convert {shared} --model {data}/raster/pipeline --steps {steps} "
            f"--out {shlex.quote(str(converted))}"
        )
        found[f"converted {steps}"] = look(converted, fresh, args.each)
        run(f"{train} --steps {steps} --out {shlex.quote(str(scratch))}")
        found[f"scratch {steps}"] = look(scratch, fresh, args.each)
    print("| model | nats a token | right | seconds to draw |")
    print("| --- | --- | --- | --- |")
    for name, f in found.items():
        print(f"| {name} | {f['loss']:.3f} | {f['right']} | {f['seconds']:.0f} |")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
