"""How often the rule-based classifier of prompts names the category that a prompt file is of.

    git clone https://github.com/Karine-Huang/T2I-CompBench
    python scripts/bench/categories.py T2I-CompBench/examples/dataset        # *_val.txt
    python scripts/bench/categories.py T2I-CompBench/examples/dataset train  # the rules' own

Prompt files are T2I-CompBench++'s (MIT), a category a file; none is kept here.
"""

import sys
from collections import Counter
from pathlib import Path

from align.noise_opt.categories import classify

FILES = {
    "color": "color", "shape": "shape", "texture": "texture", "spatial": "2d_spatial",
    "3d_spatial": "3d_spatial", "numeracy": "numeracy", "non_spatial": "non_spatial",
    "complex": "complex",
}  # fmt: skip


def main() -> None:
    folder, part = Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else "val"
    rights = []
    print("| category | prompts | right % | mean share % | taken for |\n|---|---|---|---|---|")
    for name, label in FILES.items():
        lines = (folder / f"{name}_{part}.txt").read_text(encoding="utf-8").splitlines()
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
