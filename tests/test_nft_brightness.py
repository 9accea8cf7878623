"""`align train --method nft` moves a model where its reward points, on every kind of prediction.

The tiny models are random, so they are taught first to denoise pictures of one plain colour: what a
model cannot denoise it cannot be told to prefer.
"""

import copy
from typing import Any

import pytest
import torch
from tiny import build
from train_helpers import small_config

from align.alignprop.train import train
from align.diffusion.denoisers import denoiser_module, latent_shape, make_denoiser
from align.diffusion.forward_process import coefficients, corrupt, prediction_kind, target
from align.diffusion.sample import generate

PROMPTS = ["a", "bc", "d e", "f"]
MODELS = ["sd", "sd-v", "sd3", "flux-dev", "sana"]
SIZE = {"height": 16, "width": 16}
NFT: dict[str, Any] = SIZE | {
    "method": "nft", "steps": 30, "batch_size": 16, "group_size": 8, "pair_timesteps": 4,
    "lora_rank": 4, "num_inference_steps": 4, "guidance_scale": 1.0,
    "checkpointing": False,
}  # fmt: skip
LAYERS = ("to_q", "to_k", "to_v", "to_out.0", "proj_out")
CONVOLUTIONS = ("conv1", "conv2", "conv_out")  # of a U-Net


def taught(name: str, updates: int = 150):
    """A tiny pipeline whose denoiser has learned latents that are one number a channel."""
    torch.set_num_threads(1)
    pipe = build(name)
    module, scheduler = denoiser_module(pipe), pipe.scheduler
    denoise = make_denoiser(pipe, PROMPTS, guidance_scale=1.0, **SIZE)
    kind = prediction_kind(scheduler)
    known = torch.arange(1000) if kind != "flow" else 1.0 + torch.arange(1000)
    shape = (len(PROMPTS), *latent_shape(pipe, *SIZE.values()))
    optimizer = torch.optim.AdamW(module.requires_grad_(True).parameters(), lr=3e-3)
    generator = torch.Generator().manual_seed(0)
    for _ in range(updates):
        clean = torch.randn((*shape[:2], 1, 1), generator=generator).expand(shape)
        noise = torch.randn(shape, generator=generator)
        timesteps = known[torch.randint(len(known), (len(PROMPTS),), generator=generator)]
        a, s = coefficients(scheduler, timesteps)
        error = denoise(corrupt(clean, noise, a, s), timesteps) - target(kind, clean, noise, a, s)
        loss = error.square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    module.requires_grad_(False)
    return pipe


def light(images, prompts):
    """How bright an image is; no gradient is taken."""
    return images.detach().flatten(1).mean(1)


def dark(images, prompts):
    return -light(images, prompts)


def chance(images, prompts):
    return torch.rand(len(images))


for reward in (light, dark, chance):
    reward.differentiable = False


def brightness_of(pipe):
    """Of 32 images from noises that no update saw."""
    settings = SIZE | {"num_inference_steps": 4, "guidance_scale": 1.0}
    with torch.no_grad():
        return light(generate(pipe, PROMPTS * 8, seed=12345, **settings), [])


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n == "sd3" else pytest.mark.slow) for n in MODELS]
)
def test_the_reward_leads(tmp_path, name):
    pipe = taught(name)
    settings = NFT | {"lora_targets": LAYERS, "learning_rate": 6e-3}
    if hasattr(pipe, "unet"):
        settings |= {"lora_targets": LAYERS + CONVOLUTIONS, "learning_rate": 3e-3}
    before, rise = brightness_of(pipe), {}
    for reward in (light, dark, chance):
        torch.manual_seed(0)
        folder = tmp_path / reward.__name__
        folder.mkdir()
        tuned = copy.deepcopy(pipe)
        train(small_config(folder, **settings), reward=reward, pipe=tuned)
        rise[reward.__name__] = brightness_of(tuned) - before
    mean = {name: rises.mean().item() for name, rises in rise.items()}
    error = {name: rises.std().item() / len(rises) ** 0.5 for name, rises in rise.items()}
    assert mean["light"] > 3 * error["light"]
    assert mean["dark"] < -3 * error["dark"]
    assert abs(mean["chance"]) < before.std()
    assert abs(mean["chance"]) < min(mean["light"], -mean["dark"])
