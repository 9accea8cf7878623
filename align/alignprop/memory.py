"""`align train --memory` and `--dry-run`: what a run needs, and settings with which it fits.

The estimate runs one update of the real architecture on `meta` (`align.alignprop.footprint`). What
it does not see: workspaces inside operators and fragmentation, for which a share is added.
"""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from align.alignprop.footprint import META, Footprint, footprint, weight_bytes
from align.alignprop.frozen import recompute_blocks, spare_decoder
from align.alignprop.preferences import pairs_of_group
from align.alignprop.windows import draw_window
from align.config.train import METHODS, TrainConfig
from align.diffusion.denoisers import (
    denoiser_module,
    encode_prompts,
    family_of,
    image_size,
    latent_shape,
    make_denoiser,
)
from align.diffusion.families.family import call_default
from align.diffusion.pixels import decode
from align.diffusion.schedules import check_schedule, set_scheduler
from align.models.empty import empty_pipeline, frozen
from align.models.load import best_device, default_dtype, torch_dtype
from align.models.lora import add_lora, lora_merged

GIB = 2**30
USABLE = 0.95  # of a card: its driver and the screen take the rest
RUNTIME = {True: 0.5 * GIB, False: 0.45 * GIB}  # of CUDA's context; else of Python and PyTorch
SLACK = 0.05  # of the activations: workspaces and fragmentation
OPTIMIZER = {"adamw": 8, "adamw8bit": 2}  # moments per trained weight; itself and gradient are 8
Sizes = dict[str, float]


@dataclass(frozen=True)
class Estimate:
    """Bytes by part; the run's peak is their sum."""

    parts: Sizes

    @property
    def total(self) -> float:
        """The peak in bytes."""
        return sum(self.parts.values())


def plan(
    config: TrainConfig, reward: Any = None, *, needs: "Needs | None" = None
) -> tuple[TrainConfig, Estimate]:
    """The run's settings, changed step by step until they fit `config.memory`, and their estimate.

    Settings that change no result come first. Raises MemoryError saying what the smallest
    setting needs where none fits. `reward` (a module) is counted where given; `needs` saves
    finding out again what the model takes.
    """
    needs = needs or Needs(config, reward)
    estimate = needs.estimate(config)
    limit = memory_limit(config)
    if limit is None:
        return config, estimate
    for change in savings(needs.pipe, config):
        if estimate.total <= limit:
            break
        config = dataclasses.replace(config, **change)
        estimate = needs.estimate(config)
    if estimate.total > limit:
        raise MemoryError(
            f"{config.model} does not fit {config.memory}: the smallest setting needs "
            f"{estimate.total / GIB:.1f} GiB of {limit / GIB:.1f} ({changes_text(config)}); give a "
            "larger --memory, a smaller model or a smaller --height and --width"
        )
    return config, estimate


def memory_limit(config: TrainConfig) -> float | None:
    """Usable bytes of `config.memory`, such as 16gb; None where it is not given."""
    return USABLE * GIB * int(config.memory.removesuffix("gb")) if config.memory else None


def savings(pipe: Any, config: TrainConfig) -> Iterator[dict[str, Any]]:
    """Changes of settings that save memory, each on top of those before.

    First those that change no number, at the price of time; then those that do.
    """
    height, width = image_size(pipe, config.height, config.width)
    yield {"checkpointing": True}
    yield {"cache_embeddings": True}
    micro = config.micro_batch_size or config.batch_size
    least = config.group_size if config.compares else 1
    while micro > least:
        micro = micro // 2 if micro % (2 * least) == 0 else least
        yield {"micro_batch_size": micro}
    yield {"vae_tiling": True}
    yield {"block_checkpointing": True}
    if on_cuda(config):
        yield {"quantize": config.quantize or "8bit"}
        yield {"quantize": "4bit"}
    if METHODS[config.method].through_sampler:
        yield {"detach_uncond": True}
        yield {"grad_window": "1"}
    timesteps = config.pair_timesteps if takes_timesteps(config) else 1
    while timesteps > 1:
        timesteps //= 2
        yield {"pair_timesteps": timesteps}
    if on_cuda(config):
        yield {"offload": True}
    unit = 8 * family_of(pipe).latent_factor(pipe)
    for share in (0.75, 0.5):
        small = (max(int(side * share) // unit, 1) * unit for side in (height, width))
        yield dict(zip(("height", "width"), small, strict=True))


def on_cuda(config: TrainConfig) -> bool:
    """Whether the run is meant for CUDA: a dry run for a card is, wherever it is made."""
    return torch.device(config.device or best_device()).type == "cuda" or (
        config.dry_run and config.memory is not None and config.device is None
    )


def planned_dtype(config: TrainConfig) -> torch.dtype:
    """The precision of the frozen parts on the device that the run is meant for."""
    if given := torch_dtype(config.dtype):
        return given
    if torch.cuda.is_available() or not on_cuda(config):
        return default_dtype(config.model, torch.device(config.device or best_device()))
    return torch.float32 if config.model.startswith("embedded/") else torch.bfloat16


class Needs:
    """The memory of one model's updates, for any settings."""

    def __init__(self, config: TrainConfig, reward: Any = None, pipe: Any = None):
        """`pipe` stands in for the model that the config names; its weights are given up."""
        self.dtype, self.reward = planned_dtype(config), reward
        self.num_frames = config.num_frames
        self.pipe = pipe or empty_pipeline(config.model, self.dtype)
        for part in self.pipe.components.values():
            if isinstance(part, nn.Module):
                frozen(part, self.dtype)
        vae = self.pipe.vae
        if self.dtype == torch.float16 and vae.config.get("force_upcast", False):
            vae.float()
        set_scheduler(self.pipe, config.scheduler)
        self.embeds = meta_embeds(self.pipe, config.guidance_scale)
        add_lora(self.pipe, config.lora_rank, targets=config.lora_targets)
        denoiser_module(self.pipe).to(META)
        self.activations = cache(self._activations)

    def estimate(self, config: TrainConfig) -> Estimate:
        """The parts of the peak with these settings."""
        denoiser = denoiser_module(self.pipe)
        trained = sum(p.numel() for p in denoiser.parameters() if p.requires_grad)
        encoders = [
            part
            for name, part in self.pipe.components.items()
            if name.startswith("text_encoder") and isinstance(part, nn.Module)
        ]
        size = image_size(self.pipe, config.height, config.width)
        kept = self._kept_calls(config)
        micro = min(config.micro_batch_size or config.batch_size, config.batch_size)
        drawn = 0
        if config.method == "dpo" and config.compares:
            # one unguided pass over both images of every pair
            kept, drawn = 1, micro
            micro = micro // config.group_size * compared_images(config)
        elif takes_timesteps(config):  # an unguided pass over the images a timestep
            kept = 1 if config.checkpointing else config.pair_timesteps
            drawn = micro if config.compares else 0
            micro *= 2 if config.method == "dpo" else 1
        peak = self.activations(
            micro,
            size,
            kept,
            config.guidance_scale,
            config.checkpointing,
            config.block_checkpointing,
            config.vae_tiling,
            config.detach_uncond,
            config.offload,
            drawn,
        )
        texts = sum(weight_bytes(part) for part in encoders)
        waiting = config.offload or config.cache_embeddings
        parts: Sizes = {
            "denoiser": weight_bytes(denoiser, config.quantize) - 4 * trained,
            "autoencoder": weight_bytes(self.pipe.vae),
            # Cached, they are there before the first update only, when nothing else is.
            "text encoders": max(texts - peak, 0) if waiting else texts,
            "LoRA and optimizer": trained * (8 + OPTIMIZER[config.optimizer])
            + 4 * trained * (config.ema_decay is not None),
            "reward": weight_bytes(self.reward) if isinstance(self.reward, nn.Module) else 0,
            "activations": peak * (1 + SLACK),
            "runtime": RUNTIME[on_cuda(config)],
        }
        return Estimate(parts)

    def _kept_calls(self, config: TrainConfig) -> int:
        """The most calls of the denoiser that an update's window keeps in the graph."""
        steps = config.num_inference_steps
        window = config.window
        calls = check_schedule(self.pipe, steps, config.eta, config.height, config.width)
        within = config.window_steps
        draws = [draw_window(window, within, seed=0, update=n, indices=[0]) for n in range(20)]
        per_draw = (
            1 if draw.x0_at is not None else sum(draw.kept[n][0] for n in calls if n < within)
            for draw in draws
        )
        return max(max(kept, draw.fresh) for kept, draw in zip(per_draw, draws, strict=True))

    def _activations(
        self,
        micro: int,
        size: tuple[int, int],
        kept: int,
        guidance_scale: float,
        checkpointing: bool,
        blocks: bool,
        sparing: bool,
        detach_uncond: bool,
        offload: bool,
        drawn: int,
    ) -> int:
        """The peak of an update beyond weights: a denoiser pass, held `kept` times, and decode.

        In dpo `drawn` images are drawn first, by merged weights, and there is no gradient through
        the decoder, whose peak is far below.
        """
        pipe, (height, width) = self.pipe, size
        recompute_blocks(denoiser_module(pipe), blocks)
        spare_decoder(pipe.vae, sparing)

        def one_pass(images: int, guidance_scale: float) -> Tensor:
            denoise = make_denoiser(
                pipe,
                None,
                guidance_scale=guidance_scale,
                detach_uncond=detach_uncond,
                checkpointing=checkpointing,
                height=height,
                width=width,
                prompt_embeds={k: v.expand(images, *v.shape[1:]) for k, v in self.embeds.items()},
            )
            noisy = latents[:1].expand(images, *latents.shape[1:])
            return denoise(noisy, torch.tensor(500.0, device=META))

        def drawing() -> Tensor:
            with lora_merged(pipe):
                return one_pass(drawn, guidance_scale)

        latents = torch.empty(
            micro,
            *latent_shape(pipe, height, width, self.num_frames),
            device=META,
            dtype=self.dtype,
        ).requires_grad_(kept > 1)
        guidance = 1.0 if drawn else guidance_scale
        step = footprint(lambda: one_pass(micro, guidance), offload=offload)
        if drawn:
            return max(step.peak, footprint(drawing, backward=False).peak)
        images: Footprint = footprint(
            lambda: decode(pipe, latents.detach().requires_grad_(), checkpointing=checkpointing),
            offload=offload,
        )
        held = 0 if offload else kept * step.held
        return max(held + images.peak, held - (0 if offload else step.held) + step.peak)


def takes_timesteps(config: TrainConfig) -> bool:
    """Whether the method asks the denoiser at noised images, `pair_timesteps` of each."""
    return "pair_timesteps" in METHODS[config.method].settings


def compared_images(config: TrainConfig) -> int:
    """Noised images of a group that the denoiser sees at once in dpo."""
    return 2 * pairs_of_group(config.group_size) * config.pair_timesteps


def meta_embeds(pipe: Any, guidance_scale: float) -> dict[str, Tensor]:
    """One prompt's embeddings as meta tensors, shaped as the pipeline's own."""
    if text_like := family_of(pipe).text_like:
        embeds = text_like(pipe)
        return embeds | {f"negative_{name}": value for name, value in embeds.items()}
    try:
        return encode_prompts(pipe, "a", guidance_scale=guidance_scale)
    except RuntimeError:  # PixArt's text encoder looks at its mask, which meta tensors have not
        length = call_default(pipe, "max_sequence_length")
        width = pipe.text_encoder.config.d_model
        dtype = pipe.text_encoder.dtype
        text = torch.empty(1, length, width, device=META, dtype=dtype)
        mask = torch.empty(1, length, device=META, dtype=torch.int64)
        embeds = {"prompt_embeds": text, "prompt_attention_mask": mask}
        return embeds | {f"negative_{name}": value for name, value in embeds.items()}


FIELDS = (
    "checkpointing",
    "cache_embeddings",
    "micro_batch_size",
    "pair_timesteps",
    "vae_tiling",
    "block_checkpointing",
    "quantize",
    "detach_uncond",
    "grad_window",
    "offload",
    "height",
    "width",
)


def changes_text(config: TrainConfig) -> str:
    """The settings that bear on memory, in one line."""
    return ", ".join(f"{name} {getattr(config, name)}" for name in FIELDS)


def plan_text(given: TrainConfig, chosen: TrainConfig, estimate: Estimate) -> str:
    """The estimate by part and the settings chosen, for `--dry-run`."""
    needs, limit = [*estimate.parts.items(), ("total", estimate.total)], memory_limit(chosen)
    lines = [f"{name:<20}{size / GIB:8.2f} GiB" for name, size in needs if size]
    if limit:
        lines.append(f"{'usable of ' + str(chosen.memory):<20}{limit / GIB:8.2f} GiB")
    lines += ["", "settings that bear on memory (* changed to fit):"]
    for name in FIELDS:
        before, after = getattr(given, name), getattr(chosen, name)
        lines.append(f"{'*' if before != after else ' '} {name:<20}{after}")
    precision = str(planned_dtype(chosen)).removeprefix("torch.")
    lines += [f"  {'dtype':<20}{precision}", "", "Activations of the reward are not counted."]
    return "\n".join(lines)
