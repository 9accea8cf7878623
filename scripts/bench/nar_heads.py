"""The paper's ablation of NAR's heads (arXiv 2503.10696): one axis only, or both, mixed.

    python scripts/bench/nar_own_data.py --out runs/own-data      # pictures and tokenizer
    python scripts/bench/nar_heads.py --data runs/own-data [--steps 1000]

The same small training three times, with `--fusion horizontal`, `vertical` and `mean`; then, on
fresh pictures that no training saw, the cross-entropy of a token, and how many drawn pictures show
one object of the class asked for.
"""

import argparse
import json
import random
import shlex
from pathlib import Path

import torch
import torch.nn.functional as F
from nar_own_data import CLASSES, make_pictures, right, run

from align.calibrate import read_image
from align.nar.load import load_nar_pipeline

FUSIONS = ("horizontal", "vertical", "mean")


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("runs/own-data"))
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--each", type=int, default=32, help="pictures drawn of each class")
    parser.add_argument("--fresh", type=int, default=64, help="pictures that the loss is taken of")
    args = parser.parse_args()
    fresh = args.data / "fresh"
    make_pictures(fresh, args.fresh, seed=random.Random("fresh").getrandbits(30))
    data, found = shlex.quote(str(args.data)), {}
    for fusion in FUSIONS:
        name = f"{data}/heads-{fusion}"
        run(
            f"align nar train --data {data}/pictures --tokenizer {data}/tokenizer --overwrite "
            f"--fusion {fusion} --steps {args.steps} --out {name}"
        )
        run(
            f"align nar generate --model {name}/pipeline --class-labels {' '.join(CLASSES)} "
            f"--num-images {args.each} --guidance-scale 1.5 --temperature 0.7 --overwrite "
            f"--out {name}-drawn"
        )
        pipeline = args.data / f"heads-{fusion}" / "pipeline"
        loss = held_out_loss(pipeline, fresh)
        counts = right(args.data / f"heads-{fusion}-drawn", args.each)
        exact = sum(exact for _, exact in counts.values())
        found[fusion] = {"loss": loss, "right": exact}
        print(
            f"{fusion}: {loss:.3f} nats a token of unseen pictures, {exact} of {2 * args.each} "
            "pictures right",
            flush=True,
        )
    print(json.dumps(found))


if __name__ == "__main__":
    main()
