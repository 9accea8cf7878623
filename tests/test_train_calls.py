"""How far it is from the command to the sampler: what a reader has to follow."""

import re
import sys
from pathlib import Path

from tiny import build
from train_helpers import small_config

import align.diffusion.sample
from align.commands.train import run

ROOT = Path(__file__).parents[1]
PACKAGE = str(ROOT / "align")


def calls_here() -> list[str]:
    """The functions of `align` that are at work, from `align.commands.train.run` to `sample`."""
    names, frame = [], sys._getframe()
    while frame is not None:
        if frame.f_code.co_filename.startswith(PACKAGE):
            names.insert(0, frame.f_code.co_name)
        frame = frame.f_back
    return names[names.index("run") : names.index("sample") + 1]


def test_a_reader_goes_from_the_command_to_the_sampler_in_seven_calls(tmp_path, monkeypatch):
    chains, real = [], align.diffusion.sample.prepare_scheduler

    def seen(*arguments):  # the first thing that `sample` calls
        chains.append(calls_here())
        return real(*arguments)

    monkeypatch.setattr(align.diffusion.sample, "prepare_scheduler", seen)
    build("sd").save_pretrained(tmp_path / "model")
    run(
        small_config(
            tmp_path, model=str(tmp_path / "model"), steps=1, batch_size=1, num_inference_steps=1
        )
    )
    assert max(len(chain) - 1 for chain in chains) <= 7, chains  # of pictures too
    update = next(chain for chain in chains if "losses" in chain)
    assert update == ["run", "train", "fit", "losses", "batch_loss", "rollout", "sample"]
    page = (ROOT / "docs" / "how-it-works.md").read_text(encoding="utf-8")
    told = page.split("## From the shell to the gradient")[1].split("\n## ")[0]
    named = [name for name in re.findall(r"`(?:[\w.]+\.)?(\w+)`", told) if name in update]
    assert list(dict.fromkeys(named)) == update
