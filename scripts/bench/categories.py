"""How often the rule-based classifier of prompts names the category that a prompt file is of.

    git clone https://github.com/Karine-Huang/T2I-CompBench
    python scripts/bench/categories.py T2I-CompBench/examples/dataset        # *_val.txt
    python scripts/bench/categories.py T2I-CompBench/examples/dataset train  # the rules' own
    git clone https://github.com/eslambakr/HRS_benchmark
    python scripts/bench/categories.py HRS_benchmark/codes/prompt_gen/generated_prompts hrs

Prompt files are T2I-CompBench++'s (MIT) and HRS-Bench's, a category a file; none is kept here.
"""

import ast
import csv
import sys
from collections import Counter
from pathlib import Path

from align.language.categories import classify

FILES = {
    "color": "color", "shape": "shape", "texture": "texture", "spatial": "2d_spatial",
    "3d_spatial": "3d_spatial", "numeracy": "numeracy", "non_spatial": "non_spatial",
    "complex": "complex",
}  # fmt: skip

# HRS-Bench: the file, its category, the column of the prompts that are to be drawn.
HRS = {
    "compositional_skill/colors/synthetic_color_comp_prompts.csv": ("color", "meta_prompt"),
    "compositional_skill/size_comp/synthetic_size_comp_prompts.csv": ("size", "meta_prompt"),
    "compositional_skill/spatial/synthetic_spatial_relation_prompts.csv": (
        "2d_spatial", "meta_prompt",
    ),
    "counting_prompts/synthetic_counting_prompts.csv": ("numeracy", "synthetic_prompt"),
    "writing_prompts/synthetic_writing_prompts.csv": ("text", "synthetic_prompt"),
    "k4_synthetic_emotion_prompts.csv": ("emotion", "synthetic_prompt"),
}  # fmt: skip
MOST = 200  # of a file


def hrs(folder: Path) -> dict[str, list[str]]:
    found = {}
    for name, (label, column) in HRS.items():
        with (folder / name).open(encoding="utf-8", newline="") as file:
            prompts = [row[column] for row in csv.DictReader(file)][:MOST]
        # Some cells hold a list of prompts, written as Python does.
        found[label] = [ast.literal_eval(p)[0] if p.startswith("[") else p for p in prompts]
    return found


def compbench(folder: Path, part: str) -> dict[str, list[str]]:
    return {
        label: (folder / f"{name}_{part}.txt").read_text(encoding="utf-8").splitlines()
        for name, label in FILES.items()
    }


def main() -> None:
    folder, part = Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else "val"
    rights = []
    print("| category | prompts | right % | mean share % | taken for |\n|---|---|---|---|---|")
    for label, lines in (hrs(folder) if part == "hrs" else compbench(folder, part)).items():
        guesses = [classify(line) for line in lines if line.strip()]
        firsts = Counter(next(iter(guess.shares), "unknown") for guess in guesses)
        right = 100 * firsts[label] / len(guesses)
        share = 100 * sum(guess.shares.get(label, 0.0) for guess in guesses) / len(guesses)
        others = ", ".join(f"{k} {n}" for k, n in firsts.most_common(4) if k != label)
        rights.append(right)
        print(f"| {label} | {len(guesses)} | {right:.1f} | {share:.1f} | {others} |")
    print(f"| **mean** | | **{sum(rights) / len(rights):.1f}** | | |")


if __name__ == "__main__":
    main()
