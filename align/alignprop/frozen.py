"""The frozen parts of a training: their precision, layout, recomputation and sharding."""

from typing import Any

import torch
from torch import nn

from align.config.train import TrainConfig
from align.diffusion.denoisers import denoiser_module


def prepare_pipeline(config: TrainConfig, pipe: Any, device: torch.device) -> None:
    """Precision, memory format, recomputation and compilation of the frozen parts."""
    denoiser = denoiser_module(pipe)
    recompute_blocks(denoiser, config.block_checkpointing)
    spare_decoder(pipe.vae, config.vae_tiling)
    if pipe.vae.dtype == torch.float16 and pipe.vae.config.get("force_upcast", False):
        pipe.vae.float()  # once, where `decode` would copy it at every call
    if device.type == "cuda":
        for part in (denoiser, pipe.vae):
            if not knows_frames(part):  # whose kernels have an axis too many for this format
                part.to(memory_format=torch.channels_last)
    if config.compile:
        denoiser.compile()


def shard_frozen(denoiser: Any, parameters: list[nn.Parameter], processes: int) -> None:
    """Spread the frozen weights over the processes (FSDP2), block by block; the LoRA stays whole.

    So its gradients are ours to synchronize, and checkpoints are those of any other run. Raises
    ValueError with a single process.
    """
    if processes == 1:
        raise ValueError("shard needs several processes: torchrun --nproc-per-node 2 -m align ...")
    from torch.distributed.fsdp import fully_shard

    trained = set(parameters)
    for module in denoiser.children():
        if isinstance(module, nn.ModuleList):
            for block in module:
                fully_shard(block, ignored_params=trained)
    fully_shard(denoiser, ignored_params=trained)


def recompute_blocks(module: Any, wanted: bool) -> None:
    """Let a part of diffusers recompute its blocks in the backward pass, where it can."""
    if module._supports_gradient_checkpointing:
        (
            module.enable_gradient_checkpointing
            if wanted
            else module.disable_gradient_checkpointing
        )()


def spare_decoder(vae: Any, wanted: bool) -> None:
    """Let an autoencoder work image by image, its blocks recomputed; never in tiles.

    A tile's normalizations and attention see the tile alone, so tiles of any overlap change the
    reward and its gradient all over the picture (docs/recipes).
    """
    recompute_blocks(vae, wanted)
    if knows_frames(vae):  # diffusers has no recomputation of these: a family's `decode` does it
        vae.decoder.gradient_checkpointing = wanted
    vae.use_slicing, vae.use_tiling = wanted, False


def knows_frames(module: nn.Module) -> bool:
    """Whether it is made for videos, as the autoencoder of Qwen-Image is."""
    return any(parameter.ndim == 5 for parameter in module.parameters())
