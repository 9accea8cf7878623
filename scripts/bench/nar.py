"""Throughput of NAR against raster order and PAR-4x: same backbone, same tokenizer, one run.

    python scripts/bench/nar.py                      # 16x16 tokens, batch 1 and 16, width 192
    python scripts/bench/nar.py --width 256 --guidance 2.0 --repeats 5

All three decode with random weights of one size (the time does not depend on the values) and
decode the tokens to pictures with the same tokenizer. NAR pays for the block that its second
head adds. Rounds are interleaved, so that a busy machine slows all sides alike; the ratio is the
median over rounds.
"""

import argparse
import json
import statistics
import time

import torch

from align.nar import ImageTokenizer, NARTransformer2DModel, generate_ids

ORDERS = ("wavefront", "parallel", "raster")


def make_models(args: argparse.Namespace) -> dict[str, NARTransformer2DModel]:
    models = {}
    for decoding in ORDERS:
        torch.manual_seed(args.seed)
        models[decoding] = NARTransformer2DModel(
            grid_shape=(args.grid, args.grid),
            vocab_size=1000,
            width=args.width,
            num_layers=args.layers,
            num_heads=max(args.width // 64, 1),
            ffn_width=args.width * 8 // 3,
            num_classes=10,
            decoding=decoding,
        ).eval()
    return models


def seconds(
    model: NARTransformer2DModel, tokenizer: ImageTokenizer, batch: int, guidance: float
) -> float:
    """Wall time of one batch, from labels to pictures."""
    labels = torch.arange(batch) % 10
    start = time.perf_counter()
    ids = generate_ids(model, labels, guidance_scale=guidance)
    with torch.no_grad():
        tokenizer.decode(ids)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--grid", type=int, default=16)
    parser.add_argument("--width", type=int, default=192)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--guidance", type=float, default=2.0)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    models = make_models(args)
    tokenizer = ImageTokenizer(image_size=(4 * args.grid, 4 * args.grid)).eval()
    report: dict[str, object] = {"settings": vars(args)}
    for batch in args.batches:
        rounds: dict[str, list[float]] = {name: [] for name in ORDERS}
        for name in ORDERS:  # warm up
            seconds(models[name], tokenizer, 1, args.guidance)
        for _ in range(args.repeats):
            for name in ORDERS:
                rounds[name].append(seconds(models[name], tokenizer, batch, args.guidance))
        for name, times in rounds.items():
            passes = models[name].order.num_passes
            rate = batch / statistics.median(times)
            print(f"batch {batch:>3}  {name:<10} {passes:>4} passes  {rate:8.2f} pictures/s")
        ratios = {
            name: statistics.median(
                other / own for other, own in zip(rounds[name], rounds["wavefront"], strict=True)
            )
            for name in ORDERS[1:]
        }
        print(f"batch {batch:>3}  wavefront is {ratios['raster']:.2f}x raster, "
              f"{ratios['parallel']:.2f}x PAR-4x")  # fmt: skip
        report[f"batch_{batch}"] = {"seconds": rounds, "times_faster_than": ratios}
    print(json.dumps(report))


if __name__ == "__main__":
    main()
