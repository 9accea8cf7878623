"""One table: base, LoRA, best-of-N, noise search, LoRA + search, NAR and aligned NAR, one budget.

    python scripts/bench/table.py --lora runs/lora --nar-lora runs/nar --budget 200nfe
    python scripts/bench/table.py --lora runs/lora --nar-lora runs/nar --budget 20s --allow-busy
    python scripts/bench/table.py --resume --out runs/table   # go on, from any process; then print

`--lora` is a run of `align train`, `--nar-lora` one of `align nar align`; without them their rows
are missing. Every row answers the same prompts (`scenes-heldout-b`) from the same seeds; the
verifier judges and trains nothing. A budget in nfe buys passes of the denoiser or, of NAR,
wavefronts; in seconds processor time, which is fairer, as a wavefront is less work than a step. The
columns say what was spent in truth: pictures decoded, passes forward and backward (a guided pass is
two), pictures scored times rewards, and processor seconds. It is an `align compare`, so the folder
also holds report.html, and each prompt is a file.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from align.commands.compare import compare
from align.config.evaluate import CompareConfig
from align.evaluation.wording import signed, with_interval
from align.rewards.catalogue import SCENES_REWARD

SEARCH = "carinox"


def rows(lora: str | None, nar_lora: str | None, nar: str) -> dict[str, str]:
    """The table's rows, name -> method of `align compare`, base first."""
    found = {"base": "base", "best of N": "bon", "noise search (CARINOX)": SEARCH}
    if lora:
        found |= {
            "LoRA (AlignProp)": f"lora={lora}",
            "LoRA + best of N": f"lora={lora}+bon",
            "LoRA + noise search": f"lora={lora}+{SEARCH}",
        }
    found |= {"NAR": f"nar={nar}", "NAR + best of N": f"nar={nar}+bon"}
    if nar_lora:
        found |= {
            "aligned NAR": f"nar={nar_lora}",
            "aligned NAR + best of N": f"nar={nar_lora}+bon",
        }
    return found


def table(report: dict[str, Any], names: dict[str, str]) -> str:
    """The rows in Markdown, by the report of a comparison at one budget."""
    by_method = {one["method"]: one for one in report["figures"]}
    gains = {d["method"]: d for d in report["differences"] if d["measure"] == "exact"}
    head = ["method", "exactly as asked", "against base", "facts right", "pictures", "forwards"]
    head += ["backwards", "scored", "CPU s"]
    lines = [f"| {' | '.join(head)} |", "|" + " --- |" * len(head)]
    for name, method in names.items():
        one = by_method[method]
        spent, overall = one["spent"], one["overall"]
        gain = signed(gains[method], "exact") if method in gains else ""
        cells = [name, with_interval(overall["exact"], "exact"), gain]
        cells.append(with_interval(overall["partial"], "partial"))
        cells += [f"{spent['images']:.0f}", f"{spent['generator_forwards']:.0f}"]
        cells += [f"{spent['generator_backwards']:.0f}", f"{spent['reward_forwards']:.0f}"]
        cells.append(f"{spent['cpu_seconds']:.2f}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--lora", help="a LoRA of the diffusion model")
    parser.add_argument("--nar-lora", help="a LoRA of the NAR model")
    parser.add_argument("--model", default="embedded/scenes")
    parser.add_argument("--nar", default="embedded/nar-scenes")
    parser.add_argument("--prompts", default="scenes-heldout-b")
    parser.add_argument("--per-category", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--budget", default="200nfe")
    parser.add_argument("--reward", default=SCENES_REWARD, help="what searches choose by")
    parser.add_argument("--num-inference-steps", type=int, default=10)
    parser.add_argument("--guidance-scale", type=float, default=3.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device")
    parser.add_argument("--allow-busy", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("runs/table"))
    parser.add_argument("--resume", action="store_true")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None, pipe: Any = None) -> str:
    """Run or continue the comparison; returns the table. `pipe` stands for `--model` in tests."""
    args = parse_arguments(arguments)
    file = args.out / "table.json"
    if args.resume and file.is_file():
        for name, value in json.loads(file.read_text(encoding="utf-8")).items():
            setattr(args, name, value)
    names = rows(args.lora, args.nar_lora, args.nar)
    saved = {k: v for k, v in vars(args).items() if k not in ("out", "resume")}
    config = CompareConfig(
        model=args.model,
        prompts=args.prompts,
        per_category=args.per_category,
        methods=",".join(names.values()),
        budget=args.budget,
        reward=args.reward,
        judge="verifier",
        num_inference_steps=args.num_inference_steps,
        guidance_scale=args.guidance_scale,
        repeats=args.repeats,
        seed=args.seed,
        device=args.device,
        allow_busy=args.allow_busy,
        **{"resume" if args.resume else "out": str(args.out)},
    )
    compare(config, pipe=pipe)
    file.write_text(json.dumps(saved, indent=2), encoding="utf-8")
    report = args.out / "report.json"
    if not report.is_file():
        return "other processes still work on it; run it with --resume to see the table"
    text = table(json.loads(report.read_text(encoding="utf-8")), names)
    (args.out / "table.md").write_text(text + "\n", encoding="utf-8")
    return text


if __name__ == "__main__":
    print(main())
