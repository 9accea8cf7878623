"""Tiny training runs and smooth rewards for the tests of `align.train`."""

import torch
from tiny import build

from align.alignprop.session import open_session
from align.alignprop.train import train
from align.alignprop.update import figures, losses
from align.config.train import TrainConfig
from align.models.lora import trained_parameters
from align.training.loop import fit

SMALL = {
    "model": "tiny",
    "reward": "jpeg",
    "steps": 2,
    "batch_size": 2,
    "num_inference_steps": 3,
    "guidance_scale": 2.0,
    "tracker": "none",
    "sample_every": 0,
    "checkpoint_every": 0,
    "lora_rank": 2,
    "device": "cpu",
}
LORA = "pytorch_lora_weights.safetensors"
PROMPTS = ["a", "bc", "d e", "f", "gh"]


def brightness(images, prompts):
    """A smooth reward that differs between places and colors."""
    weights = torch.linspace(-1, 2, images[0].numel(), dtype=images.dtype).view(images[0].shape)
    length = torch.tensor([len(prompt) for prompt in prompts], dtype=images.dtype)
    return 100 * (images.square() * weights).flatten(1).mean(1) * length


def small_config(folder, **changes) -> TrainConfig:
    """A run of seconds in `folder`/run, with its prompts in a file."""
    prompts = folder / "prompts.txt"
    if not prompts.exists():
        prompts.write_text("\n".join(PROMPTS))
    settings = {"prompts": str(prompts), "out": str(folder / "run")}
    return TrainConfig(**SMALL | settings | changes)


def small_session(folder, dtype=torch.float64, reward=brightness, **changes):
    """An open session on a tiny pipeline, its LoRA moved off zero."""
    folder.mkdir(parents=True, exist_ok=True)
    pipe = build("sd").to(dtype)
    pipe.vae.decoder.conv_out.weight.data *= 0.2  # pixels well inside [0, 1]
    session = open_session(small_config(folder, **changes), reward=reward, pipe=pipe)
    randomize(pipe)
    return session


def updates_of(session, each=lambda record: None):
    """The records of all updates that are left, after each of which `each(record)` is called."""
    records = []
    fit(session, losses, figures, on_step=lambda record: records.append(record) or each(record))
    return records


def randomize(pipe) -> None:
    """Give a LoRA's weights values, so that all of them matter."""
    generator = torch.Generator().manual_seed(1)
    for parameter in trained_parameters(pipe).values():
        values = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
        parameter.data.copy_(0.3 * values)


def run(folder, *, reward=brightness, dtype=torch.float32, pipe=None, on_step=None, **changes):
    """A run on a tiny pipeline: its result and the pipeline with the trained LoRA."""
    folder.mkdir(parents=True, exist_ok=True)
    pipe = pipe or build("sd").to(dtype)
    config = small_config(folder, **changes)
    return train(config, reward=reward, pipe=pipe, on_step=on_step), pipe


def weights(pipe):
    return torch.cat([p.detach().flatten() for p in trained_parameters(pipe).values()])
