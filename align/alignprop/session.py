"""All that a training run holds: the pipeline with its LoRA, reward, prompts, optimizer."""

import dataclasses
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import AutocastKwargs, broadcast_object_list
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from jaxtyping import Float
from torch import Tensor, nn

from align.alignprop.embeddings import Embeddings
from align.alignprop.frozen import prepare_pipeline, shard_frozen
from align.alignprop.rollout import check_window
from align.config.train import METHODS, TrainConfig
from align.config.windows import Window, parse_window
from align.diffusion.denoisers import Denoiser, denoiser_module, make_denoiser
from align.diffusion.pixels import decode
from align.diffusion.prompt_limits import warn_about_prompts
from align.diffusion.sample import make_noise, sample
from align.diffusion.schedules import check_schedule, set_scheduler
from align.language.prompts import PromptSet, training_prompts
from align.models.load import default_dtype, load_pipeline, torch_device, torch_dtype
from align.models.lora import add_lora
from align.models.processes import open_accelerator, own_device
from align.rewards import load_reward
from align.runs.folder import check_folder, open_run
from align.training.runs import check_services
from align.training.scales import RunningScale
from align.training.seeding import seeded

DRAW_BATCH = 8
SCHEDULES = {"constant": "constant_with_warmup", "linear": "linear", "cosine": "cosine"}


class Whole(nn.Module):
    """Runs a function as the forward pass of the module that it uses.

    Sampling calls the denoiser many times; a distributed wrapper synchronizes the gradients of one
    forward pass. So what is wrapped is this module, and a pass is the whole way to the loss.
    """

    def __init__(self, module: nn.Module):
        super().__init__()
        self.module = module

    def forward(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return function(*arguments)


@dataclass
class Session:
    """The state of a run."""

    config: TrainConfig
    folder: Path
    accelerator: Accelerator
    pipe: Any
    reward: Any
    prompts: PromptSet
    window: Window
    embed: Embeddings
    parameters: list[nn.Parameter]
    whole: nn.Module
    optimizer: Any
    schedule: Any
    ema: EMAModel | None
    scale: RunningScale | None
    done: int = 0
    """Updates finished."""
    saved: int = -1
    """The step of the newest checkpoint."""
    skipped: int = 0
    """Steps in a row that the gradient scaler has passed over."""
    lora_metadata: dict[str, str] | None = None
    course: dict[str, Any] = field(default_factory=dict)
    """What a resumed run has to know: the base's `pictures` scores; whether any group's scores
    have `differed` (dpo); the judge's figures of the base (`base`), of the `last` judgment, and
    `score`, `step` and `since` (judgments without a better one) of the best, `judged_on` what.
    """

    @property
    def device(self) -> torch.device:
        """Where the trained weights are."""
        return self.parameters[0].device

    @property
    def share(self) -> int:
        """Images of an update in this process."""
        return self.config.batch_size // self.accelerator.num_processes

    @property
    def micro(self) -> int:
        """Images per forward pass."""
        return min(self.config.micro_batch_size or self.share, self.share)

    @property
    def together(self) -> bool:
        """Whether all processes must draw where one does."""
        return self.config.shard

    @property
    def picture_settings(self) -> dict[str, Any]:
        """What a PNG says of how it was drawn."""
        c = self.config
        return {
            "negative_prompt": c.negative_prompt,
            "num_inference_steps": c.num_inference_steps,
            "guidance_scale": c.guidance_scale,
            "scheduler": type(self.pipe.scheduler).__name__,
            "eta": c.eta or None,
        }

    def denoiser(self, embeds: dict[str, Tensor], **settings: Any) -> Denoiser:
        """A denoiser for embedded prompts with the run's guidance and size, and `settings` of
        `make_denoiser`."""
        c = self.config
        settings = {"guidance_scale": c.guidance_scale, **settings}
        size = {"height": c.height, "width": c.width}
        return make_denoiser(self.pipe, None, prompt_embeds=embeds, **size, **settings)

    @torch.no_grad()
    def draw(self, prompts: list[str], seeds: list[int]) -> Float[Tensor, "b 3 h w"]:
        """Images of the present model, one per prompt, from the noise of its seed, with the
        training's own steps and guidance."""
        c, pipe, parts = self.config, self.pipe, []
        for start in range(0, len(prompts), DRAW_BATCH):
            piece = slice(start, start + DRAW_BATCH)
            latents = sample(
                self.denoiser(self.embed(prompts[piece])),
                pipe.scheduler,
                make_noise(pipe, seeds[piece], c.height, c.width),
                num_inference_steps=c.num_inference_steps,
                eta=c.eta,
                generator=[torch.Generator().manual_seed(seed + 1) for seed in seeds[piece]],
            )
            parts.append(decode(pipe, latents))
        return torch.cat(parts)


def open_session(config: TrainConfig, *, reward: Any = None, pipe: Any = None) -> Session:
    """Check everything the user gave, load it, and make the run's folder last.

    `reward` (anything `load_reward` takes) and `pipe` (a diffusers pipeline) stand in for what the
    config names; the pipeline gets `config.scheduler`. Raises ValueError, TypeError or
    FileNotFoundError for what cannot be trained.
    """
    check_folder(config.out, config.overwrite, config.resume)
    window = parse_window(config.grad_window, config.num_inference_steps)
    if config.shard and window.kind == "random-per-sample":
        raise ValueError(
            "shard needs a window that all processes share, and grad_window is "
            f"{config.grad_window!r}; use random"
        )
    if config.shard and config.quantize:
        raise ValueError("shard and quantize are both given; they cannot be combined")
    prompts = training_prompts(config)
    accelerator, device = make_accelerator(config, pipe)
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
    schedule = get_scheduler(
        SCHEDULES[config.lr_schedule],
        optimizer,
        num_warmup_steps=config.warmup_steps,
        num_training_steps=config.steps,
    )
    whole: nn.Module = Whole(denoiser_module(pipe))
    if config.shard:
        shard_frozen(denoiser_module(pipe), parameters, accelerator.num_processes)
        optimizer = accelerator.prepare(optimizer)
    else:
        whole, optimizer = accelerator.prepare(whole, optimizer)
    folder, sampler = [""], type(pipe.scheduler).__name__
    if accelerator.is_main_process:
        place = (config.out, config, config.overwrite, config.resume)
        folder = [str(open_run(*place, command="train", scheduler=sampler))]
    folder = Path(broadcast_object_list(folder)[0])
    accelerator.project_configuration.logging_dir = str(folder)
    return Session(
        config=config,
        folder=folder,
        accelerator=accelerator,
        pipe=pipe,
        reward=reward,
        prompts=prompts,
        window=window,
        embed=Embeddings(config, pipe, device),
        parameters=parameters,
        whole=whole,
        optimizer=optimizer,
        schedule=schedule,
        ema=None if config.ema_decay is None else EMAModel(parameters, decay=config.ema_decay),
        scale=RunningScale() if config.normalize_rewards else None,
    )


def name_given(config: TrainConfig, reward: Any, pipe: Any) -> TrainConfig:
    """The config with the names of what stands in for its reward and model, for all that is
    written about the run."""
    changes = {} if reward is None else {"reward": reward_name(reward)}
    if pipe is not None and config.model == TrainConfig.model:  # nobody named another
        changes["model"] = str(pipe.config.get("_name_or_path") or type(pipe).__name__)
    return dataclasses.replace(config, **changes) if changes else config


def reward_name(reward: Any) -> str:
    """An expression as it is; of anything else that `load_reward` takes, its functions' names."""
    return reward if isinstance(reward, str) else ", ".join(load_reward(reward).functions)


def make_accelerator(config: TrainConfig, pipe: Any = None) -> tuple[Accelerator, torch.device]:
    """Accelerate's processes, accumulation and loss scaling; the device is ours to choose.

    Raises ValueError where the batch cannot be split over the processes and forward passes.
    """
    check_services(config)
    device = torch_device(own_device(config.device))
    precision = torch_dtype(config.dtype) or default_dtype(config.model, device)
    if pipe is not None:
        device, precision = denoiser_module(pipe).device, denoiser_module(pipe).dtype
    scaled = precision == torch.float16 and device.type == "cuda"
    accelerator = open_accelerator(
        cpu=device.type == "cpu",
        device_placement=False,
        # For the gradient scaler alone: parts run in the precision they were loaded in.
        mixed_precision="fp16" if scaled else "no",
        kwargs_handlers=[AutocastKwargs(enabled=False)],
        log_with=None if config.tracker == "none" else config.tracker,
        project_dir="runs",  # until the run's folder is made
    )
    count = accelerator.num_processes
    if config.batch_size % count:
        raise ValueError(
            f"batch_size is {config.batch_size}; it must be a multiple of the {count} processes"
        )
    share = config.batch_size // count
    micro = min(config.micro_batch_size or share, share)
    if share % micro:
        raise ValueError(
            f"micro_batch_size is {micro}; it must divide the {share} images of a process"
        )
    groups = config.group_size if METHODS[config.method].compares else 1
    if share % groups or micro % groups:
        raise ValueError(
            f"a process has {share} images, {micro} a forward pass; both must be multiples of "
            f"group_size, which is {config.group_size}"
        )
    accelerator.gradient_accumulation_steps = share // micro
    return accelerator, accelerator.device if count > 1 else device


def trained_reward(config: TrainConfig, device: Any = "cpu", reward: Any = None) -> Any:
    """The run's reward, frozen. Raises ValueError where it has no gradient."""
    reward = load_reward(config.reward if reward is None else reward, device)
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
    """Raise ValueError where a method that compares predictions of noise is asked of a model that
    was not trained to make them."""
    if not METHODS[config.method].compares:
        return
    kind = pipe.scheduler.config.get("prediction_type")
    noises = hasattr(pipe.scheduler, "alphas_cumprod")
    if not noises or kind not in ("epsilon", "v_prediction", "sample"):
        raise ValueError(
            f"method is {config.method!r}, which needs a model of the kind of Stable Diffusion "
            f"1.x, 2.x or XL; {type(pipe).__name__} with {type(pipe.scheduler).__name__} is none: "
            "use alignprop"
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
