"""README's table and pictures, from the reports of `align compare`.

    align compare --methods base,bon,carinox,nar=embedded/nar-scenes --budget 100nfe \
        --per-category 8 --num-inference-steps 10 --guidance-scale 3 --prompts scenes-heldout-b \
        --out runs/scenes
    align compare --model embedded/scenes-turbo --methods base,bon,carinox --budget 50nfe \
        --per-category 8 --num-inference-steps 1 --prompts scenes-heldout-b --out runs/turbo
    python scripts/bench/readme.py runs/scenes runs/turbo --pictures runs/turbo

Rewrites what stands between `<!-- table -->` and `<!-- end -->` in README.md. With `--pictures`
also docs/images/before-after.png: of the first prompt of each category in that run, the base's
picture above the last method's, framed green where the verifier finds exactly what was asked.
"""

import argparse
import json
import re
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps

from align.evaluation.wording import signed, with_interval
from align.runs.files import atomic_path, write_atomic

ROOT = Path(__file__).parents[2]
SIDE, FRAME = 96, 3  # px of a picture and of its frame
COLORS = {True: "#2e7d32", False: "#c62828"}
ADVICE = {  # what to take when, by what a method's name begins with
    "base": "nothing but the model",
    "bon": "any reward; the cheapest gain",
    "carinox": "a reward with a gradient; one picture that has to be right",
    "lora": "many pictures; costs a training once",
    "nar": "drawn in wavefronts of tokens",
}


def report_of(run: Path) -> dict[str, Any]:
    return json.loads((run / "report.json").read_text(encoding="utf-8"))


def rows(run: Path) -> list[str]:
    """The table's rows of one run, in the order of its methods."""
    report, model = report_of(run), report_of(run)["run"]["config"]["model"]
    gains = {d["method"]: d for d in report["differences"] if d["measure"] == "exact"}
    found = []
    for one in report["figures"]:
        name, overall = one["method"], one["overall"]
        advice = next(text for start, text in ADVICE.items() if name.startswith(start))
        drawn_by = name.partition("=")[2] if name.startswith("nar=") else model
        cells = [
            drawn_by.removeprefix("embedded/"),
            name.partition("=")[0],
            f"{one['spent']['generator_forwards']:.0f}",
            with_interval(overall["exact"], "exact"),
            signed(gains[name], "exact") if name in gains else "",
            f"{one['spent']['cpu_seconds']:.1f}",
            advice,
        ]
        found.append(f"| {' | '.join(cells)} |")
    return found


def table(runs: list[Path]) -> str:
    head = ["model", "method", "passes", "exactly as asked", "against base", "CPU s", "take it for"]
    lines = [f"| {' | '.join(head)} |", "|" + " --- |" * len(head)]
    return "\n".join([*lines, *(line for run in runs for line in rows(run))])


def pictures(run: Path) -> Image.Image:
    """The base's picture of each category's first prompt above the last method's."""
    last = report_of(run)["figures"][-1]["method"]
    records = [json.loads(p.read_text()) for p in sorted((run / "prompts").glob("*.json"))]
    first = {record["category"]: record for record in reversed(records)}
    chosen = [record for record in records if first[record["category"]] is record]
    width = SIDE + 2 * FRAME
    sheet = Image.new("RGB", (len(chosen) * width, 2 * width), "white")
    for column, record in enumerate(chosen):
        for line, method in enumerate(("base", last)):
            one = next(r for r in record["results"] if r["method"] == method)
            with Image.open(run / one["image"]) as opened:
                picture = opened.convert("RGB").resize((SIDE, SIDE), Image.Resampling.NEAREST)
            color = COLORS[one["scores"]["exact"] == 1]
            sheet.paste(ImageOps.expand(picture, FRAME, color), (column * width, line * width))
    return sheet


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--pictures", type=Path, help="the run whose pictures to show")
    parser.add_argument("--readme", type=Path, default=ROOT / "README.md")
    parser.add_argument("--image", type=Path, default=ROOT / "docs/images/before-after.png")
    args = parser.parse_args()
    text = args.readme.read_text(encoding="utf-8")
    marked = re.compile(r"(<!-- table -->\n).*?(\n<!-- end -->)", re.DOTALL)
    if not marked.search(text):
        raise SystemExit(f"{args.readme} has no <!-- table --> … <!-- end -->")
    made = table(args.runs)
    write_atomic(args.readme, marked.sub(lambda m: m[1] + made + m[2], text))
    if args.pictures:
        with atomic_path(args.image) as path:
            pictures(args.pictures).save(path, format="png", optimize=True)
    print(made)


if __name__ == "__main__":
    main()
