"""What a LoRA does to the embedded model, by kind of objective and by gradient window.

    python scripts/bench/objectives.py train jpeg            # one row; some minutes of one core
    python scripts/bench/objectives.py judge base jpeg       # 360 pictures of each
    python scripts/bench/objectives.py report                # tables, and pictures.png

Rows are trained on `scenes-heldout-a`. All are judged alike, on 90 prompts of `scenes-heldout-b`
from four fixed noises each, at the base's best steps and guidance: by the verifier, by every reward
of scenes (the row's own among them), by bytes of real JPEG files, and by how much the pictures of a
prompt differ. The control is `plain`, from `alignprop_gain.py plain --out OUT`. Rows are
files, so that processes may share them.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from alignprop_gain import interval
from jpeg_lora import file_size
from PIL import Image

import align
from align import scenes
from align.run import image_grid, to_pil
from align.training.judge import diversity

REWARDS = ("scenes-clip", "scenes-vqa", "scenes-preference", "scenes-count")
# A third of the preset: five minutes of one core.
RANKED = {"preset": "embedded-dpo", "steps": 80}
SMOOTH = {"preset": "embedded", "grad_window": "1", "steps": 60}
WINDOW = {"preset": "embedded", "reward": "scenes-clip", "num_inference_steps": 12, "steps": 40}
ROWS = {
    **{reward: RANKED | {"reward": reward} for reward in REWARDS},
    "three": RANKED | {"reward": "z(scenes-clip=1,scenes-count=1,scenes-vqa=1)"},
    "jpeg": SMOOTH | {"reward": "jpeg"},
    "jpeg and scenes-clip": SMOOTH | {"reward": "jpeg=1,scenes-clip=1"},
    "window 1": WINDOW | {"grad_window": "1"},
    "window 10": WINDOW | {"grad_window": "10"},
    "window random": WINDOW | {"grad_window": "random"},
}
MEASURES = ("exact", "partial", *REWARDS, "bytes")


def folder(args: argparse.Namespace, row: str) -> Path:
    return args.out / row.replace(" ", "-")


def train(args: argparse.Namespace) -> None:
    for row in args.rows:
        config = align.TrainConfig(
            model="embedded/scenes", prompts="scenes-heldout-a", tracker="none", sample_every=0,
            seed=args.seed, dtype=args.dtype, out=str(folder(args, row)), overwrite=True,
            **ROWS[row],
        )  # fmt: skip
        metrics = align.train(config).metrics
        print(f"{row}: {sum(record['seconds'] for record in metrics) / 60:.1f} min", flush=True)


@torch.no_grad()
def judge(args: argparse.Namespace) -> None:
    prompts = scenes.prompt_set("scenes-heldout-b", args.per_category)
    rewards = {name: align.load_reward(name) for name in REWARDS}
    for row in args.rows:
        lora = None if row == "base" else str(folder(args, row))
        pipe = align.load_pipeline("embedded/scenes", lora=lora)
        found: dict[str, list] = {name: [] for name in (*MEASURES, "diversity")}
        shown = []
        for i, prompt in enumerate(prompts):
            part = [prompt] * args.noises
            images = align.generate(
                pipe, part, seed=1000 * i, num_inference_steps=args.num_inference_steps,
                guidance_scale=args.guidance_scale,
            )  # fmt: skip
            exact, partial = scenes.verify(part, images)
            found["exact"].append(100 * float(exact.float().mean()))
            found["partial"].append(100 * float(partial.mean()))
            for name, reward in rewards.items():
                found[name].append(float(reward(images, part).mean()))
            found["bytes"].append(float(np.mean([file_size(to_pil(image)) for image in images])))
            found["diversity"].append(diversity(images[None]))
            if i % args.per_category == 0:  # one a category
                shown.append(images[0])
        folder(args, row).mkdir(parents=True, exist_ok=True)
        to_pil(image_grid(torch.stack(shown), len(shown))).save(folder(args, row) / "judged.png")
        (folder(args, row) / "judged.json").write_text(json.dumps(found))
        print(f"{row}: exact {np.mean(found['exact']):.1f} %", flush=True)


def report(args: argparse.Namespace) -> None:
    rows = [row for row in ("base", "plain", *ROWS) if (folder(args, row) / "judged.json").exists()]
    if "base" not in rows:
        raise SystemExit("base has not been judged; run `judge base` first")
    found = {row: json.loads((folder(args, row) / "judged.json").read_text()) for row in rows}
    head = ["LoRA", *MEASURES, "diversity"]
    print(f"| {' | '.join(head)} |\n|{' --- |' * len(head)}")
    for row in rows:
        cells = [f"{np.mean(found[row][name]):.4g}" for name in MEASURES]
        share = np.mean(found[row]["diversity"]) / np.mean(found["base"]["diversity"])
        print(f"| {row} | {' | '.join(cells)} | {share:.2f} |")
    print("\n| LoRA - base | exact, points | own reward |\n| --- | --- | --- |")
    for row in rows[1:]:
        rises = {
            name: np.array(found[row][name]) - np.array(found["base"][name]) for name in MEASURES
        }
        own = row if row in REWARDS else "bytes" if row.startswith("jpeg") else "scenes-clip"
        mean, error = rises[own].mean(), rises[own].std() / len(rises[own]) ** 0.5
        print(f"| {row} | {interval(rises['exact'] / 100)} | {own} {mean:+.3g} ± {error:.2g} |")
    strips = [Image.open(folder(args, row) / "judged.png") for row in rows]
    sheet = Image.new("RGB", (strips[0].width, sum(strip.height + 2 for strip in strips)), "white")
    for i, strip in enumerate(strips):  # a line a row of the table
        sheet.paste(strip, (0, i * (strip.height + 2)))
    sheet.save(args.out / "pictures.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("command", choices=("train", "judge", "report"))
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"base, plain, {', '.join(ROWS)}")
    parser.add_argument("--out", type=Path, default=Path("work/objectives"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dtype", help="bfloat16 where the processor has it")
    parser.add_argument("--per-category", type=int, default=10, help="prompts")
    parser.add_argument("--noises", type=int, default=4, help="of each prompt")
    parser.add_argument("--num-inference-steps", type=int, default=20)
    parser.add_argument("--guidance-scale", type=float, default=4.5)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    if unknown := set(args.rows) - {"base", "plain", *ROWS}:
        parser.error(f"unknown rows {unknown}; there are base, plain, {', '.join(ROWS)}")
    torch.set_num_threads(args.threads)
    {"train": train, "judge": judge, "report": report}[args.command](args)


if __name__ == "__main__":
    main()
