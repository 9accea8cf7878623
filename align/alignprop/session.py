"""How a run of a diffusion model opens: the pipeline with its LoRA, reward, prompts, optimizer."""

import dataclasses
import importlib.util
from dataclasses import dataclass, field
from pkgutil import resolve_name
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import AutocastKwargs
from diffusers.training_utils import EMAModel
from jaxtyping import Float
from torch import Tensor, nn

from align.alignprop.embeddings import Embeddings
from align.alignprop.frozen import prepare_pipeline, shard_frozen
from align.alignprop.nft import OldPolicy
from align.alignprop.pairs import Bucket, encode_pairs, prompts_of
from align.alignprop.rollout import check_window
from align.alignprop.update import LossModule
from align.config.train import METHODS, TrainConfig
from align.config.windows import Window
from align.diffusion.denoisers import (
    Denoiser,
    denoiser_module,
    family_of,
    latent_frames,
    make_denoiser,
)
from align.diffusion.forward_process import prediction_kind
from align.diffusion.pixels import decode
from align.diffusion.prompt_limits import warn_about_prompts
from align.diffusion.sample import make_noise, sample
from align.diffusion.schedules import check_schedule, set_scheduler
from align.diffusion.stochastic_steps import check_stochastic
from align.language.pairs import read_pairs
from align.language.prompts import refuse_reserved, training_prompts
from align.models.load import default_dtype, load_pipeline, torch_device, torch_dtype
from align.models.lora import add_lora
from align.models.processes import own_device
from align.rewards import load_reward
from align.rewards.groups import comparing, pointwise
from align.runs.folder import check_folder
from align.training.checkpoints import digest_of
from align.training.optimizer import make_schedule
from align.training.runs import Run, check_login, make_accelerator, open_folder, reward_name
from align.training.scales import RunningScale
from align.training.seeding import seeded

DRAW_BATCH = 8


@dataclass
class Sampler:
    """How a run of a diffusion model draws."""

    config: TrainConfig
    pipe: Any
    window: Window
    embed: Embeddings
    old: OldPolicy | None = None
    """The policy that draws, where it is not the present one (nft)."""
    buckets: list[Bucket] = field(default_factory=list)
    """Pictures of one's own (pairs)."""

    def denoiser(self, embeds: dict[str, Tensor], **settings: Any) -> Denoiser:
        """A denoiser for embedded prompts with the run's guidance and size, and `settings` of
        `make_denoiser`."""
        c = self.config
        own = {"guidance_scale": c.guidance_scale, "height": c.height, "width": c.width}
        return make_denoiser(self.pipe, None, prompt_embeds=embeds, **own | settings)

    def latents(
        self, embeds: dict[str, Tensor], seeds: list[int], eta_seeds: list[int]
    ) -> Float[Tensor, "b c *f h w"]:
        """Latents of the present model, each from the noise of its seed, with the training's own
        steps and guidance; `eta_seeds` are of the noise within the steps."""
        c, pipe = self.config, self.pipe
        return sample(
            self.denoiser(embeds),
            pipe.scheduler,
            make_noise(pipe, seeds, c.height, c.width, c.num_frames),
            num_inference_steps=c.num_inference_steps,
            eta=c.eta,
            generator=[torch.Generator().manual_seed(seed) for seed in eta_seeds],
        )

    @torch.no_grad()
    def draw(self, prompts: list[str], seeds: list[int]) -> Float[Tensor, "b *t 3 h w"]:
        """Images of the present model, one per prompt, each from its seed."""
        parts = []
        for start in range(0, len(prompts), DRAW_BATCH):
            embeds, own = self.embed(prompts[start:][:DRAW_BATCH]), seeds[start:][:DRAW_BATCH]
            latents = self.latents(embeds, own, [seed + 1 for seed in own])
            parts.append(decode(self.pipe, latents))
        return torch.cat(parts)


def open_session(config: TrainConfig, *, reward: Any = None, pipe: Any = None) -> Run:
    """Check everything the user gave, load it, and make the run's folder last.

    `reward` (anything `load_reward` takes) and `pipe` (a diffusers pipeline) stand in for what the
    config names; the pipeline gets `config.scheduler`. Raises ValueError, TypeError or
    FileNotFoundError for what cannot be trained.
    """
    check_folder(config.out, config.overwrite, config.resume)
    check_login(config.push_to_hub)
    window = config.window
    if config.shard and window.kind == "random-per-sample":
        raise ValueError(
            "shard needs a window that all processes share, and grad_window is "
            f"{config.grad_window!r}; use random"
        )
    if config.shard and config.quantize:
        raise ValueError("shard and quantize are both given; they cannot be combined")
    pairs = read_pairs(config.pairs, METHODS[config.method].compares) if config.pairs else []
    prompts = prompts_of(pairs) if pairs else training_prompts(config)
    if pairs:
        refuse_reserved(prompts, "pairs", "train on pictures of other prompts")
    accelerator, device = open_processes(config, pipe)
    reward = trained_reward(config, device, reward)
    if config.normalize_rewards and reward.expression.kind_within("z", "product"):
        raise ValueError(
            "normalize_rewards is for sums and minima of rewards; z(...) normalizes already, and a "
            "product of deviations has no meaning"
        )
    if pipe is None:
        pipe = load_pipeline(
            config.model,
            device=device,
            dtype=config.dtype,
            attention=config.attention,
            quantize=config.quantize,
        )
    set_scheduler(pipe, config.scheduler)
    latent_frames(pipe, config.num_frames)
    check_schedule(pipe, config.num_inference_steps, config.eta, config.height, config.width)
    if METHODS[config.method].through_sampler:
        check_window(window, pipe.scheduler)
    check_method(config, pipe)
    if accelerator.is_main_process:
        warn_about_prompts(pipe, prompts.prompts)
    with seeded(config.seed):  # the LoRA's first weights
        parameters = add_lora(
            pipe, config.lora_rank, config.lora_alpha, config.lora_targets, start=config.lora
        )
    prepare_pipeline(config, pipe, device)
    optimizer = make_optimizer(config, parameters)
    schedule = make_schedule(config, optimizer)
    buckets = encode_pairs(pairs, pipe, config.height, config.width) if pairs else []
    method = METHODS[config.method]
    loss = resolve_name(method.of_pairs if pairs and method.of_pairs else method.loss)
    model: nn.Module = LossModule(denoiser_module(pipe), loss)
    if config.shard:
        shard_frozen(denoiser_module(pipe), parameters, accelerator.num_processes)
        optimizer = accelerator.prepare(optimizer)
    else:
        model, optimizer = accelerator.prepare(model, optimizer)
    scheduler = type(pipe.scheduler).__name__
    sampler = Sampler(config, pipe, window, Embeddings(config, pipe, device), buckets=buckets)
    if config.method == "nft" and config.old_decay:
        sampler.old = OldPolicy(parameters, config.old_decay)
    return Run(
        config=config,
        folder=open_folder(config, accelerator, "train", scheduler=scheduler),
        accelerator=accelerator,
        model=model,
        parameters=parameters,
        optimizer=optimizer,
        schedule=schedule,
        contents={"prompts": digest_of(prompts)},
        max_grad_norm=config.max_grad_norm,
        ema=None if config.ema_decay is None else EMAModel(parameters, decay=config.ema_decay),
        pipe=pipe,
        reward=reward,
        prompts=prompts,
        sampler=sampler,
        kept=sampler.old.weights if sampler.old else [],
        picture_settings={
            "negative_prompt": config.negative_prompt,
            "num_inference_steps": config.num_inference_steps,
            "guidance_scale": config.guidance_scale,
            "scheduler": scheduler,
            "eta": config.eta or None,
        },
        periods=picture_periods(pipe),
        scale=RunningScale() if config.normalize_rewards else None,
        sharded=config.shard,
    )


def picture_periods(pipe: Any) -> tuple[int, ...]:
    """The sides in pixels of a cell of the latents and of a patch of the denoiser."""
    family = family_of(pipe)
    cell = family.latent_factor(pipe)
    own = getattr(denoiser_module(pipe).config, "patch_size", 1)
    patch = max(family.latent_patch, own) if isinstance(own, int) else family.latent_patch
    return tuple(dict.fromkeys((cell, cell * patch)))


def name_given(config: TrainConfig, reward: Any, pipe: Any) -> TrainConfig:
    """The config with the names of what stands in for its reward and model, for all that is
    written about the run."""
    changes = {} if reward is None else {"reward": reward_name(reward)}
    if pipe is not None and config.model == TrainConfig.model:  # nobody named another
        changes["model"] = str(pipe.config.get("_name_or_path") or type(pipe).__name__)
    return dataclasses.replace(config, **changes) if changes else config


def open_processes(config: TrainConfig, pipe: Any) -> tuple[Accelerator, torch.device]:
    """Accelerate's processes, accumulation and loss scaling; the device is ours to choose.

    Raises ValueError where the batch cannot be split over the processes and forward passes.
    """
    device = torch_device(own_device(config.device))
    precision = torch_dtype(config.dtype) or default_dtype(config.model, device)
    if pipe is not None:
        device, precision = denoiser_module(pipe).device, denoiser_module(pipe).dtype
    scaled = precision == torch.float16 and device.type == "cuda"
    accelerator = make_accelerator(
        config,
        device,
        # For the gradient scaler alone: parts run in the precision they were loaded in.
        "fp16" if scaled else "no",
        device_placement=False,
        kwargs_handlers=[AutocastKwargs(enabled=False)],
    )
    share = config.batch_size // accelerator.num_processes
    micro = min(config.micro_batch_size or share, share)
    if share % micro:
        raise ValueError(
            f"micro_batch_size is {micro}; it must divide the {share} images of a process"
        )
    if config.compares and (share % config.group_size or micro % config.group_size):
        raise ValueError(
            f"a process has {share} images, {micro} a forward pass; both must be multiples of "
            f"group_size, which is {config.group_size}"
        )
    accelerator.gradient_accumulation_steps = share // micro
    return accelerator, accelerator.device if accelerator.num_processes > 1 else device


def trained_reward(config: TrainConfig, device: Any = "cpu", reward: Any = None) -> Any:
    """The run's reward, frozen. Raises ValueError where it has no gradient."""
    reward = load_reward(config.reward if reward is None else reward, device)
    if not config.compares:
        pointwise(reward, "learning from pairs" if config.pairs else f"method {config.method}")
    if config.normalize_rewards and comparing(reward.functions):
        raise ValueError(
            f"normalize_rewards is given, and {comparing(reward.functions)[0]} has scores within a "
            "group alone, which have no running mean; leave it out"
        )
    if METHODS[config.method].through_sampler:
        refuse_undifferentiable(reward)
    return reward.eval().requires_grad_(False)


def refuse_undifferentiable(reward: Any) -> None:
    """Raise ValueError naming the terms of a reward that have no gradient."""
    if not reward.differentiable:
        names = [n for n, f in reward.functions.items() if not getattr(f, "differentiable", True)]
        raise ValueError(
            f"reward {', '.join(names)} has no gradient to train on; use it as --judge, or a "
            "differentiable reward"
        )


def check_method(config: TrainConfig, pipe: Any) -> None:
    """Raise ValueError where a method that noises images is asked of a model whose schedule does
    not say how, or nft of one that was distilled to few steps."""
    if METHODS[config.method].through_sampler:
        return
    name = type(pipe).__name__
    if prediction_kind(pipe.scheduler) is None:
        raise ValueError(
            f"method is {config.method!r}, which needs a model that predicts noise, a velocity or "
            f"the image; {name} with {type(pipe.scheduler).__name__} is none: use alignprop"
        )
    if config.method == "grpo":
        check_stochastic(pipe.scheduler, config.noise_level, config.stochastic_step)
    few = family_of(pipe).few_steps(pipe) or name == "LatentConsistencyModelPipeline"
    if name == "FluxPipeline":
        few = not pipe.transformer.config.guidance_embeds  # schnell
    if few and config.method == "nft":
        raise ValueError(
            f"method is 'nft', which blurs models that were distilled to few steps, and {name} is "
            "one: use alignprop, whose gradient goes through them all"
        )


def make_optimizer(config: TrainConfig, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    """AdamW, or its 8-bit form. Raises ValueError where bitsandbytes is missing for that."""
    kind = torch.optim.AdamW
    if config.optimizer == "adamw8bit":
        if importlib.util.find_spec("bitsandbytes") is None:
            raise ValueError(
                "optimizer is 'adamw8bit', which needs bitsandbytes: pip install "
                "align-diffusion[quantize]; "
                "adamw works without it"
            )
        from bitsandbytes.optim import AdamW8bit as kind  # pyright: ignore
    return kind(parameters, lr=config.learning_rate, weight_decay=config.weight_decay)
