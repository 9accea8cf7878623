"""How long `embedded/scenes` takes for 4 pictures at 25 steps, the model being loaded.

    python scripts/bench/generate_time.py

Prints the median and the range of wall time, and the processor time: on a machine that is busy with
other work the two differ, and the wall time says little.
"""

import argparse
import statistics
import time

import torch

import align

PROMPT = "a red circle to the left of a blue square"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="embedded/scenes")
    parser.add_argument("--images", type=int, default=4)
    parser.add_argument("--num-inference-steps", type=int, default=25)
    parser.add_argument("--guidance-scale", type=float, default=3.0)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    pipe = align.load_pipeline(args.model)
    steps, walls, processors = args.num_inference_steps, [], []
    for repeat in range(args.repeats + 1):  # the first one warms up
        wall, processor = time.perf_counter(), time.process_time()
        with torch.no_grad():
            align.generate(
                pipe,
                [PROMPT] * args.images,
                seed=repeat,
                num_inference_steps=steps,
                guidance_scale=args.guidance_scale,
            )
        if repeat:
            walls.append(time.perf_counter() - wall)
            processors.append(time.process_time() - processor)
    print(
        f"{args.images} pictures, {steps} steps, {torch.get_num_threads()} threads: "
        f"median {statistics.median(walls):.2f} s ({min(walls):.2f} to {max(walls):.2f}), "
        f"processor {statistics.median(processors):.2f} s"
    )


if __name__ == "__main__":
    main()
