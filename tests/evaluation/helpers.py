"""A tiny model, a judge and prompts for runs of seconds."""

from pathlib import Path

from tiny import build

JUDGE = '''
def dark(images, prompts):
    """How dark a picture is, in [0, 1]."""
    return 1 - images.flatten(1).mean(1)


def slow(images, prompts):
    import time

    time.sleep(0.1)
    return dark(images, prompts)
'''
PROMPTS = "prompt,category\na cat,animal\na dog,animal\na red cup,thing\na blue cup,thing\n"


def tiny():
    """A tiny random Stable Diffusion, 16x16."""
    return build("sd")


def settings(folder: Path, **changes) -> dict:
    """Fields of a config for the tiny model, its judge and prompts in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "judge.py").write_text(JUDGE)
    (folder / "prompts.csv").write_text(PROMPTS)
    return {
        "model": "tiny",
        "prompts": str(folder / "prompts.csv"),
        "judge": f"{folder / 'judge.py'}:dark",
        "num_inference_steps": 2,
        "guidance_scale": 1.0,
        "batch_size": 3,
        "device": "cpu",
        "out": str(folder / "run"),
    } | changes
