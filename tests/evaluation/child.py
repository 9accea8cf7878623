"""A process of an evaluation: `child.py FOLDER RANK WORLD_SIZE [resume]`, as torchrun starts it."""

import os
import sys
from pathlib import Path

import torch

from align.commands.evaluate import evaluate
from align.config.evaluate import EvaluateConfig
from evaluation.helpers import settings, tiny

if __name__ == "__main__":
    torch.set_num_threads(1)
    folder, rank, world = Path(sys.argv[1]), *sys.argv[2:4]
    os.environ |= {
        "RANK": rank,
        "WORLD_SIZE": world,
        "MASTER_PORT": "1",
        "TORCHELASTIC_RUN_ID": "x",
    }
    config = settings(folder)
    config["judge"] = config["judge"].replace("dark", "slow")
    (folder / "prompts.txt").write_text("\n".join(f"a cat number {i}" for i in range(12)))
    config["prompts"] = str(folder / "prompts.txt")
    if "resume" in sys.argv:
        config |= {"resume": config["out"], "out": None}
    evaluate(EvaluateConfig(**config), pipe=tiny())
