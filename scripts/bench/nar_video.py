"""How right `embedded/nar-scenes-video` is, and how much faster than raster order clips decode.

    python scripts/bench/nar_video.py quality                # 100 prompts: 75 seen, 25 held out
    python scripts/bench/nar_video.py quality --guidance 1.5 2 3 --temperature 0.8 0.9
    python scripts/bench/nar_video.py speed                  # 4x8x8 and 4x16x16 tokens, batch 1

quality: a clip counts where the verifier finds the stated object, and nothing else, in at least
80 % of the frames, and it goes the stated way; beside it the tokenizer's own bound, on true clips
that it rebuilt. speed: both decode with random weights of one trunk (time does not depend on the
values) and the same tokenizer; NAR pays for the two blocks that its further heads add. Rounds are
interleaved, so that a busy machine slows both alike; the ratio is the median over rounds.
"""

import argparse
import json
import random
import statistics
import time

import numpy as np
import torch

from align.nar import NARTransformer3DModel, VideoTokenizer, generate_ids
from align.nar.load import load_nar_pipeline
from align.scenes.motion import motion_prompts, sample_clip
from align.scenes.motion_verifier import ClipVerdict, verify_clips


def shares(verdicts: list[ClipVerdict]) -> dict[str, float]:
    """Means over clips."""
    return {
        "exact": round(float(np.mean([v.exact for v in verdicts])), 3),
        "frames": round(float(np.mean([v.frames for v in verdicts])), 3),
        "direction": round(float(np.mean([v.direction for v in verdicts])), 3),
    }


def tokenizer_bound(tokenizer: VideoTokenizer, count: int) -> dict[str, float]:
    """The same of true clips of held-out objects that the tokenizer has rebuilt."""
    rng = random.Random("nar-video-bound")
    pairs = [sample_clip(rng, heldout=True) for _ in range(count)]
    clips = torch.from_numpy(np.stack([clip for _, clip in pairs])).permute(0, 1, 4, 2, 3) / 255
    with torch.no_grad():
        rebuilt = tokenizer.decode(tokenizer.encode(clips))
    return shares(verify_clips([prompt for prompt, _ in pairs], rebuilt))


def chosen_prompts(seen: int, heldout: int, seed: int) -> dict[str, list[str]]:
    """Prompts without repeats, evenly over what can be said."""
    rng = random.Random(f"nar-video-prompts-{seed}")
    sets = {"seen": (motion_prompts(), seen), "heldout": (motion_prompts(heldout=True), heldout)}
    return {name: rng.sample(all_, min(count, len(all_))) for name, (all_, count) in sets.items()}


def quality(args: argparse.Namespace) -> None:
    pipe = load_nar_pipeline(args.model, "cpu")
    print("tokenizer, held-out clips rebuilt:", tokenizer_bound(pipe.video_tokenizer, 24))
    own = pipe.scheduler.config
    for guidance in args.guidance or [own.guidance_scale]:
        for temperature in args.temperature or [own.temperature]:
            settings = {"guidance_scale": guidance, "temperature": temperature}
            everything: list[ClipVerdict] = []
            for name, prompts in chosen_prompts(args.seen, args.heldout, args.seed).items():
                verdicts, seconds = [], 0.0
                for start in range(0, len(prompts), args.batch_size):
                    part = prompts[start : start + args.batch_size]
                    seeds = [args.seed + start + row for row in range(len(part))]
                    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
                    began = time.perf_counter()
                    frames = pipe(part, generator=generators, output_type="pt", **settings).frames
                    seconds += time.perf_counter() - began
                    verdicts += verify_clips(part, frames)
                everything += verdicts
                record = {"prompts": name, "count": len(prompts), **settings, **shares(verdicts)}
                print(json.dumps(record | {"seconds_per_clip": round(seconds / len(prompts), 3)}))
            print(json.dumps({"prompts": "all", **settings, **shares(everything)}), flush=True)


def speed(args: argparse.Namespace) -> None:
    for grid in ((4, 8, 8), (4, 16, 16)):
        models = {}
        for decoding in ("wavefront", "raster"):
            torch.manual_seed(args.seed)
            models[decoding] = NARTransformer3DModel(
                grid_shape=grid, vocab_size=1000, width=args.width, num_layers=args.layers,
                num_heads=max(args.width // 64, 1), ffn_width=args.width * 8 // 3, num_classes=10,
                decoding=decoding,
            ).eval()  # fmt: skip
        side = (4 * grid[1], 4 * grid[2])
        tokenizer = VideoTokenizer(num_frames=2 * grid[0], image_size=side).eval()
        for model in models.values():
            clip_seconds(model, tokenizer, args.guidance_scale)  # warm up
        rounds: dict[str, list[float]] = {name: [] for name in models}
        for _ in range(args.repeats):
            for name, model in models.items():
                rounds[name].append(clip_seconds(model, tokenizer, args.guidance_scale))
        pairs = zip(rounds["raster"], rounds["wavefront"], strict=True)
        ratio = statistics.median(slow / fast for slow, fast in pairs)
        for name, model in models.items():
            seconds = statistics.median(rounds[name])
            print(f"{grid}  {name:<10} {model.order.num_passes:>5} passes  {seconds:7.3f} s a clip")
        print(f"{grid}  wavefront is {ratio:.2f}x raster, batch 1, {args.threads} threads")


def clip_seconds(model: NARTransformer3DModel, tokenizer: VideoTokenizer, guidance: float) -> float:
    """Wall time of one clip, from label to frames."""
    began = time.perf_counter()
    ids = generate_ids(model, torch.tensor([1]), guidance_scale=guidance)
    with torch.no_grad():
        tokenizer.decode(ids)
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("command", choices=("quality", "speed"))
    parser.add_argument("--model", default="embedded/nar-scenes-video")
    parser.add_argument("--seen", type=int, default=75)
    parser.add_argument("--heldout", type=int, default=25)
    parser.add_argument("--guidance", type=float, nargs="+")
    parser.add_argument("--temperature", type=float, nargs="+")
    parser.add_argument("--batch-size", type=int, default=25)
    parser.add_argument("--width", type=int, default=192)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--guidance-scale", type=float, default=2.0, help="of speed")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    {"quality": quality, "speed": speed}[args.command](args)


if __name__ == "__main__":
    main()
