"""What GenEval's and flow_grpo's own functions say of the scenes of `tests/geneval_scenes.py`.

    python scripts/golden/geneval.py GENEVAL/evaluation/evaluate_images.py \
        REWARD_SERVER/reward_server/gen_eval.py

Writes `tests/golden/rewards/geneval.json`. The functions are taken out of the files by name, so
that neither mmdet nor a GPU is needed; colours are those of the scene.
"""

import ast
import json
import sys
from pathlib import Path

import numpy as np

TESTS = Path(__file__).parents[2] / "tests"
sys.path.insert(0, str(TESTS))

from geneval_scenes import COLOURS, COUNT, scene  # noqa: E402


def functions(path: str, *names: str) -> dict:
    """Some functions of a file, wherever they are defined in it."""
    tree = ast.parse(Path(path).read_text())
    found = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef) and n.name in names]
    space = {
        "np": np, "POSITION_THRESHOLD": 0.1, "COLORS": list(COLOURS),
        "color_classification": lambda image, things, name: [color for _, color in things],
    }  # fmt: skip
    exec(compile(ast.Module(found, []), path, "exec"), space)
    return space


def kinds(reason: str) -> list[str]:
    """The kind of each line of a reason."""
    made = []
    for line in filter(None, reason.split("\n")):
        told, _, found = line.partition(", found ")
        if line.startswith("no target"):
            made.append("target")
        elif ">=" in told and ";" in found:
            made.append("color")
        elif ">=" in told or "==" in told:
            made.append("number")
        else:
            made.append("many" if "<" in told else "position")
    return made


def main(original: str, server: str) -> None:
    plain = functions(original, "evaluate", "relative_position")
    dense = functions(server, "evaluate_reward", "relative_position")
    rows = []
    for seed in range(COUNT):
        found, asked = scene(seed)
        _, reason = plain["evaluate"](None, found, asked)
        strict, reward, _ = dense["evaluate_reward"](None, found, asked)
        rows.append([kinds(reason), strict, reward])
    path = TESTS / "golden" / "rewards" / "geneval.json"
    path.write_text(json.dumps(rows))


if __name__ == "__main__":
    main(*sys.argv[1:])
