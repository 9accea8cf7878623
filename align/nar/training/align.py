"""`align nar align`: raise a reward on a NAR model by its exact log-probabilities.

Judging, checkpoints, pictures and reports are those of `align.train`; here is what differs: how
an update's images are drawn, scored and turned into a loss (`align.nar.training.policy`).
"""

import dataclasses
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from diffusers.optimization import get_scheduler
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from align.alignprop.session import SCHEDULES, reward_name
from align.alignprop.train import OnStep, TrainResult, carry_out
from align.config.nar import NarAlignConfig
from align.language.prompts import PromptSet, draw_prompts, training_prompts
from align.models.load import torch_device
from align.models.lora import add_lora
from align.models.precision import fast_bfloat16
from align.models.processes import open_accelerator
from align.nar.generate import generate_ids
from align.nar.layers import lay_out_for_decoding
from align.nar.load import load_nar_pipeline
from align.nar.pipeline import POLICY_KEY
from align.nar.training.align_card import model_card
from align.nar.training.losses import step_on
from align.rewards import load_reward
from align.runs.folder import check_folder, open_run
from align.training.checkpoints import refuse_other_run
from align.training.groups import flat_share
from align.training.judge import HeldOutJudge
from align.training.runs import check_services
from align.training.seeding import image_seed, seeded
from align.training.stopping import Diverged, agree, clear_memory_errors, stop_signals

LORA_TARGETS = ("attention.qkv", "attention.out", "ffn.gate", "ffn.up", "ffn.down")
DRAW_BATCH = 16


@dataclass
class NarSession:
    """The state of a run; an `align.training.runs.Run`."""

    config: NarAlignConfig
    folder: Path
    accelerator: Accelerator
    pipe: Any
    reward: Any
    prompts: PromptSet
    parameters: list[nn.Parameter]
    optimizer: Any
    schedule: Any
    ema: Any = None
    scale: Any = None
    done: int = 0
    saved: int = -1
    skipped: int = 0
    course: dict[str, Any] = field(default_factory=dict)

    @property
    def together(self) -> bool:
        """Every process holds the whole model, so one can draw alone."""
        return False

    @property
    def lora_metadata(self) -> dict[str, str]:
        """The settings that make sampling the trained policy, for whoever loads the LoRA."""
        return {POLICY_KEY: json.dumps(self.picture_settings | {"top_k": 0, "top_p": 1.0})}

    @property
    def picture_settings(self) -> dict[str, Any]:
        """What a PNG says of how it was drawn."""
        c = self.config
        return {"temperature": c.temperature, "guidance_scale": c.guidance_scale}

    def draw(self, prompts: list[str], seeds: list[int]) -> Float[Tensor, "b 3 h w"]:
        """Images of the present policy, one per prompt, each from the generator of its seed."""
        parts = []
        for start in range(0, len(prompts), DRAW_BATCH):
            piece = slice(start, start + DRAW_BATCH)
            ids = draw_ids(self, *conditions_of(self.pipe, prompts[piece]), seeds[piece])
            parts.append(self.pipe.preview(ids))
        return torch.cat(parts)


@dataclass(frozen=True)
class Sampled:
    """The images of an update in this process: groups of neighbours share a prompt."""

    ids: Int[Tensor, "b n"]
    condition: Tensor
    mask: Bool[Tensor, "b t"] | None
    terms: dict[str, Float[Tensor, " b"]]
    scores: Float[Tensor, " b"]


def align_nar(
    config: NarAlignConfig, *, reward: Any = None, pipe: Any = None, on_step: OnStep | None = None
) -> TrainResult:
    """Train a LoRA that raises `config.reward`; the result is that of `align.train`.

    `reward` (an expression or a callable of images [b, 3, h, w] in [0, 1] and prompts; no gradient
    is asked of it) and `pipe` (a `NARPipeline`, to which the LoRA is added) stand in for what the
    config names. `on_step(record)` is called after every update; where it returns True the run
    ends well there.

    Raises ValueError, TypeError or FileNotFoundError for wrong input; Diverged, with everything
    before that update saved, where a score or the gradient is no longer a finite number;
    KeyboardInterrupt after saving.
    """
    if reward is not None:
        config = dataclasses.replace(config, reward=reward_name(reward))
    refuse_other_run(config)
    with stop_signals() as stop_asked, clear_memory_errors():
        judge = HeldOutJudge(config) if config.judge else None
        session = open_session(config, reward=reward, pipe=pipe)

        def step(update: int) -> dict[str, Any]:
            return align_step(session, update, stop_asked)

        return carry_out(session, judge, step, model_card, on_step)


def open_session(config: NarAlignConfig, *, reward: Any = None, pipe: Any = None) -> NarSession:
    """Check everything the user gave, load it, and make the run's folder last."""
    check_folder(config.out, config.overwrite, config.resume)
    check_services(config)
    prompts = training_prompts(config)
    accelerator = make_accelerator(config, pipe)
    reward = load_reward(config.reward if reward is None else reward, accelerator.device)
    reward.eval().requires_grad_(False)
    if pipe is None:
        pipe = load_nar_pipeline(config.model, accelerator.device, "float32")
    targets = config.lora_targets or LORA_TARGETS
    with seeded(config.seed):  # the LoRA's first weights
        parameters = add_lora(pipe, config.lora_rank, config.lora_alpha, targets, start=config.lora)
    # once, or the first drawing would change the layout, and with it the last bits, in mid-run
    lay_out_for_decoding(pipe.transformer.eval())
    optimizer = torch.optim.AdamW(
        parameters, lr=config.learning_rate, weight_decay=config.weight_decay
    )
    schedule = get_scheduler(
        SCHEDULES[config.lr_schedule],
        optimizer,
        num_warmup_steps=config.warmup_steps,
        num_training_steps=config.steps,
    )
    folder = [""]
    accelerator.wait_for_everyone()  # or a slower process finds the folder in use
    if accelerator.is_main_process:
        made = open_run(config.out, config, config.overwrite, config.resume, command="nar align")
        folder = [str(made)]
    folder = Path(broadcast_object_list(folder)[0])
    accelerator.project_configuration.logging_dir = str(folder)
    return NarSession(
        config, folder, accelerator, pipe, reward, prompts, parameters, optimizer, schedule
    )


def make_accelerator(config: NarAlignConfig, pipe: Any = None) -> Accelerator:
    """Accelerate's processes. ValueError where the groups cannot be shared out."""
    device = torch_device(config.device) if pipe is None else pipe.transformer.device
    accelerator = open_accelerator(
        cpu=device.type == "cpu",
        mixed_precision=config.mixed_precision or ("bf16" if fast_bfloat16(device.type) else "no"),
        log_with=None if config.tracker == "none" else config.tracker,
        project_dir="runs",  # until the run's folder is made
    )
    groups, processes = config.batch_size // config.group_size, accelerator.num_processes
    if groups % processes:
        raise ValueError(
            f"batch_size is {config.batch_size}, which makes {groups} groups of "
            f"{config.group_size}; their number must be a multiple of the {processes} processes"
        )
    return accelerator


def conditions_of(pipe: Any, prompts: list[str]) -> tuple[Tensor, Tensor | None]:
    """Conditions of prompts, which are the classes' names where the model has classes."""
    if pipe.transformer.config.condition == "text":
        return pipe.conditions(prompts, None, 1)
    return pipe.conditions(None, prompts, 1)


def draw_ids(
    session: NarSession, condition: Tensor, mask: Tensor | None, seeds: list[int]
) -> Int[Tensor, "b n"]:
    """Tokens drawn from the policy, without truncation; each picture from its own generator."""
    c = session.config
    with session.accelerator.autocast():
        return generate_ids(
            session.pipe.transformer,
            condition,
            condition_mask=mask,
            guidance_scale=c.guidance_scale,
            temperature=c.temperature,
            generator=[torch.Generator().manual_seed(seed) for seed in seeds],
        )


@torch.no_grad()
def sample_groups(session: NarSession, update: int) -> Sampled:
    """Draw and score this process's groups of an update.

    Raises Diverged where a score is not finite.
    """
    c, pipe = session.config, session.pipe
    share = c.batch_size // c.group_size // session.accelerator.num_processes
    first = session.accelerator.process_index * share
    groups = range(first, first + share)
    rows = draw_prompts(len(session.prompts), seed=c.seed, update=update, indices=groups)
    rows = [row for row in rows for _ in range(c.group_size)]
    prompts = [session.prompts.prompts[row] for row in rows]
    metadata = [session.prompts.metadata[row] for row in rows]
    indices = range(first * c.group_size, (first + share) * c.group_size)
    seeds = [image_seed("sample", c.seed, update, index) for index in indices]
    condition, mask = conditions_of(pipe, prompts)
    parts = []
    for start in range(0, len(seeds), DRAW_BATCH):
        piece = slice(start, start + DRAW_BATCH)
        own = None if mask is None else mask[piece]
        parts.append(draw_ids(session, condition[piece], own, seeds[piece]))
    ids = torch.cat(parts)
    images = torch.cat([pipe.preview(part) for part in ids.split(DRAW_BATCH)])
    terms = session.reward.terms(images, prompts, metadata)
    for name, score in terms.items():
        if not score.isfinite().all():
            raise Diverged(f"reward {name} is {score[~score.isfinite()][0].item()}")
    scores = session.reward.combine(terms).to(images.device)
    return Sampled(ids, condition, mask, terms, scores)


def align_step(
    session: NarSession, update: int, stop_asked: Callable[[], bool] = lambda: False
) -> dict[str, Any]:
    """One update: draw groups, score them, step the optimizer; its record for metrics.jsonl.

    The weights are untouched if it raises: Diverged for what is not finite, Interrupted once
    `stop_asked()` in any process.
    """
    c, started, accelerator = session.config, time.perf_counter(), session.accelerator
    learning_rate = session.optimizer.param_groups[0]["lr"]
    with seeded(image_seed("update", c.seed, update, accelerator.process_index)):
        fault, sampled = None, None
        try:
            sampled = sample_groups(session, update)
        except Diverged as error:
            fault = error
        agree(accelerator, fault, stop_asked())
        assert sampled is not None  # agree has raised otherwise
        figures = step_on(session, sampled)
    session.schedule.step()
    gather: Any = accelerator.gather
    everyone = gather(sampled.scores)
    record: dict[str, Any] = {
        "reward": everyone.mean().item(),
        "reward_std": everyone.std(correction=0).item(),
        "terms": {name: gather(score).mean().item() for name, score in sampled.terms.items()},
        "flat_groups": flat_share(session, everyone, c.group_size),
    }
    for name, value in figures.items():
        record[name] = gather(torch.tensor([value], device=accelerator.device)).mean().item()
    seconds = time.perf_counter() - started
    return {"step": update + 1, **record, "lr": learning_rate, "seconds": seconds}
