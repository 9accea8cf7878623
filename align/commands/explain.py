"""`align rewards explain`: why a score is low, fact by fact."""

from pathlib import Path

import torch

from align.config.commands import ExplainConfig
from align.models.load import torch_device
from align.rewards import load_reward
from align.rewards.facts import explain
from align.rewards.groups import pointwise
from align.runs.pictures import read_image


def run(config: ExplainConfig) -> str:
    """The score and the facts of each picture, as text.

    Raises:
        ValueError: no prompt or picture, one that cannot be read, a reward that cannot explain.
        FileNotFoundError: a picture, or the reward's weights, are not there.
    """
    if len(config.source) < 2:
        raise ValueError('give a prompt and pictures: align rewards explain "PROMPT" PICTURE...')
    prompt, *paths = config.source
    if not prompt.strip():
        raise ValueError("the prompt is empty; say what the picture should show")
    for path in paths:
        if not Path(path).is_file():
            raise FileNotFoundError(f"no picture {path}")
    pictures = [read_image(Path(path))[None] for path in paths]
    reward = pointwise(load_reward(config.reward, torch_device(config.device)), "rewards explain")
    lines = []
    for path, picture in zip(paths, pictures, strict=True):
        found = explain(reward, picture, [prompt])
        with torch.no_grad():
            terms = reward.terms(picture, [prompt])
        for name, (facts,) in found.items():
            lines += [f"{path}: {name} {float(terms[name]):.3f}", *(f"  {fact}" for fact in facts)]
    return "\n".join(lines)
