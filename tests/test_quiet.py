"""What commands say on the screen: their own words and progress, nothing of the libraries."""

import os
import re
import subprocess
import sys

COMMANDS = """
import sys
from align.cli import main

few = ["--num-inference-steps", "2", "--out"]
assert main(["generate", "a red circle", *few, "generate"]) == 0
assert main(["optimize", "a red circle", "--budget", "2images", *few, "optimize"]) == 0
size = ["--steps", "1", "--batch-size", "2", "--micro-batch-size", "2"]
assert main(["train", "--preset", "embedded", *size, *few, "train"]) == 0
assert main(["nar", "generate", "a red circle", "--out", "nar"]) == 0
"""
PROGRESS = re.compile(r"\d+%\||\d(step|it|image|prompt) \[")  # tqdm's, with a total and without


def test_no_message_of_a_library_reaches_the_screen(tmp_path):
    """As on a machine where nothing was set and nothing ran before."""
    settings = {"TRANSFORMERS_VERBOSITY", "DIFFUSERS_VERBOSITY", "PYTHONWARNINGS"}
    environment = {name: value for name, value in os.environ.items() if name not in settings}
    environment |= {"MPLCONFIGDIR": str(tmp_path / "matplotlib"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", COMMANDS],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    lines = [line.strip() for line in re.split(r"[\r\n]+", done.stderr)]
    assert not [line for line in lines if line and not PROGRESS.search(line)]
