"""What a LoRA does to the embedded model, by kind of objective and by gradient window.

    python scripts/bench/objectives.py train jpeg            # one row; some minutes of one core
    python scripts/bench/objectives.py judge base jpeg       # 360 pictures of each
    python scripts/bench/objectives.py report                # tables, and pictures.png

Rows are trained on `scenes-heldout-a`. All are judged alike, on 90 prompts of `scenes-heldout-b`
from four fixed noises each, at the base's best steps and guidance: by the verifier, by every reward
of scenes (the row's own among them), by bytes of real JPEG files, and by how much the pictures of a
prompt differ. The control is `plain`, from `alignprop_gain.py plain --train-only --out OUT`. The
ablation of AlignProp (2310.03739) is four rows in float32, of which `without LoRA` trains all
weights of the U-Net. Rows are files, so that processes may share them.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from judged import MEASURES, REWARDS, interval, judge, save, with_error
from PIL import Image
from safetensors.torch import load_file, save_file

import align
from align import scenes
from align.alignprop.session import open_session
from align.alignprop.update import figures, losses
from align.runs.folder import image_grid, read_metrics, to_pil
from align.training.loop import fit
from align.training.optimizer import make_schedule

# Five minutes of one core. These are the preset's settings of before it was tied to the base.
RANKED = {
    "preset": "embedded-dpo", "steps": 80, "pair_timesteps": 4, "kl_weight": 0.0,
    "learning_rate": 2.5e-3, "lora_targets": (
        "to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2", "proj_in", "proj_out",
    ),
}  # fmt: skip
SMOOTH = {"preset": "embedded", "grad_window": "1", "steps": 60}
WINDOW = {"preset": "embedded", "reward": "scenes-clip", "num_inference_steps": 12, "steps": 40}
ROWS = {
    **{reward: RANKED | {"reward": reward} for reward in REWARDS},
    "two": RANKED | {"reward": "z(scenes-detector=1,scenes-clip=0.5)"},
    "jpeg": SMOOTH | {"reward": "jpeg"},
    "jpeg and scenes-clip": SMOOTH | {"reward": "jpeg=1,scenes-clip=1"},
    "window 1": WINDOW | {"grad_window": "1"},
    "window 10": WINDOW | {"grad_window": "10"},
    "window random": WINDOW | {"grad_window": "random"},
}
WITHOUT_LORA = "without LoRA"
ALL = ("base", "plain", *ROWS, WITHOUT_LORA)
WEIGHTS = "unet.safetensors"  # of that row


def folder(args: argparse.Namespace, row: str) -> Path:
    return args.out / row.replace(" ", "-")


def train(args: argparse.Namespace) -> None:
    for row in args.rows:
        whole = row == WITHOUT_LORA
        settings = ROWS["window random" if whole else row]
        config = align.TrainConfig(
            model="embedded/scenes", prompts="scenes-heldout-a", tracker="none", sample_every=0,
            seed=args.seed, dtype=args.dtype, out=str(folder(args, row)), overwrite=True,
            **settings,
        )  # fmt: skip
        metrics = train_whole(config, args.whole_rate) if whole else align.train(config).metrics
        print(
            f"{row}: {sum(record['seconds'] for record in metrics) / 60:.1f} min, reward "
            f"{np.mean([record['reward'] for record in metrics[-10:]]):.4f} in the last ten",
            flush=True,
        )


def train_whole(config: align.TrainConfig, learning_rate: float) -> list[dict]:
    """Updates of all weights of the U-Net; the LoRA stays zero, as the package trains no other."""
    run = open_session(config)
    unet = run.pipe.unet.requires_grad_(True)
    weights = {name: p for name, p in unet.named_parameters() if ".lora_" not in name}
    for parameter in run.parameters:
        parameter.requires_grad_(False)
    run.parameters = list(weights.values())
    optimizer = torch.optim.AdamW(run.parameters, learning_rate, weight_decay=1e-4)
    run.schedule = make_schedule(config, optimizer)
    run.optimizer = run.accelerator.prepare(optimizer)
    fit(run, losses, figures)
    plain_names = {name.replace(".base_layer", ""): p.data for name, p in weights.items()}
    save_file(plain_names, run.folder / WEIGHTS)
    return read_metrics(run.folder)


def judge_rows(args: argparse.Namespace) -> None:
    prompts = scenes.prompt_set("scenes-heldout-b", args.per_category)
    for row in args.rows:
        lora = None if row in ("base", WITHOUT_LORA) else str(folder(args, row))
        pipe = align.load_pipeline("embedded/scenes", lora=lora)
        if row == WITHOUT_LORA:
            pipe.unet.load_state_dict(load_file(folder(args, row) / WEIGHTS))
        shown: list[torch.Tensor] = []
        found = judge(
            pipe, prompts, args.noises, args.num_inference_steps, args.guidance_scale,
            look=lambda images, shown=shown: shown.extend(images[:, 0]),
        )  # fmt: skip
        folder(args, row).mkdir(parents=True, exist_ok=True)
        one_each = torch.stack(shown[:: args.per_category])
        to_pil(image_grid(one_each, len(one_each))).save(folder(args, row) / "judged.png")
        save(folder(args, row) / "judged.json", **found)
        print(f"{row}: exact {100 * found['exact'].mean():.1f} %", flush=True)


def report(args: argparse.Namespace) -> None:
    rows = [row for row in ALL if (folder(args, row) / "judged.json").exists()]
    if "base" not in rows:
        raise SystemExit("base has not been judged; run `judge base` first")
    found = {row: json.loads((folder(args, row) / "judged.json").read_text()) for row in rows}
    head = ["LoRA", *MEASURES, "diversity"]
    print(f"| {' | '.join(head)} |\n|{' --- |' * len(head)}")
    for row in rows:
        cells = [
            f"{np.mean(found[row][name]) * (100 if name in ('exact', 'partial') else 1):.4g}"
            for name in MEASURES
        ]
        share = np.mean(found[row]["diversity"]) / np.mean(found["base"]["diversity"])
        print(f"| {row} | {' | '.join(cells)} | {share:.2f} |")
    print("\n| LoRA - base | exact, points | own reward |\n| --- | --- | --- |")
    for row in rows[1:]:
        rises = {
            name: (np.array(found[row][name]) - np.array(found["base"][name])).mean(1)
            for name in MEASURES
        }
        own = row if row in REWARDS else "bytes" if row.startswith("jpeg") else "scenes-clip"
        print(f"| {row} | {interval(rises['exact'])} | {own} {with_error(rises[own])} |")
    strips = [Image.open(folder(args, row) / "judged.png") for row in rows]
    sheet = Image.new("RGB", (strips[0].width, sum(strip.height + 2 for strip in strips)), "white")
    for i, strip in enumerate(strips):  # a line a row of the table
        sheet.paste(strip, (0, i * (strip.height + 2)))
    sheet.save(args.out / "pictures.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("command", choices=("train", "judge", "report"))
    parser.add_argument("rows", nargs="*", metavar="ROW", help=", ".join(ALL))
    parser.add_argument("--out", type=Path, default=Path("work/objectives"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dtype", help="bfloat16 where the processor has it")
    parser.add_argument("--whole-rate", type=float, default=1e-5, help="learning, without LoRA")
    parser.add_argument("--per-category", type=int, default=10, help="prompts")
    parser.add_argument("--noises", type=int, default=4, help="of each prompt")
    parser.add_argument("--num-inference-steps", type=int, default=20)
    parser.add_argument("--guidance-scale", type=float, default=4.5)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    if unknown := set(args.rows) - set(ALL):
        parser.error(f"unknown rows {unknown}; there are {', '.join(ALL)}")
    torch.set_num_threads(args.threads)
    {"train": train, "judge": judge_rows, "report": report}[args.command](args)


if __name__ == "__main__":
    main()
