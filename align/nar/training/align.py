"""`align nar align`: raise a reward on a NAR model by its exact log-probabilities.

Judging, checkpoints, pictures and reports are those of `align.train`; here is what differs: how
an update's images are drawn and scored; `align.nar.training.losses` makes a loss of them.
"""

import dataclasses
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch
from accelerate import Accelerator
from jaxtyping import Float, Int
from torch import Tensor

from align.config.nar import NarAlignConfig
from align.language.prompts import draw_prompts, training_prompts
from align.models.load import torch_device
from align.models.lora import add_lora
from align.models.processes import end_training
from align.nar.generate import generate_ids
from align.nar.layers import lay_out_for_decoding
from align.nar.load import load_nar_pipeline
from align.nar.pipeline import POLICY_KEY
from align.nar.training.align_card import model_card
from align.nar.training.losses import Part, Sampled, dpo_losses, grpo_losses
from align.rewards import load_reward
from align.runs.folder import check_folder
from align.training.checkpoints import digest_of, refuse_other_run
from align.training.groups import flat_share
from align.training.judge import HeldOutJudge
from align.training.loop import OnStep, TrainResult, begin, finish, fit
from align.training.optimizer import average_gradients, make_schedule
from align.training.pictures import image_terms, means_of
from align.training.runs import Run, check_login, make_accelerator, open_folder, reward_name
from align.training.seeding import image_seed, seeded
from align.training.stopping import Diverged, agreed, clear_memory_errors, stop_signals

LORA_TARGETS = ("attention.qkv", "attention.out", "ffn.gate", "ffn.up", "ffn.down")
DRAW_BATCH = 16
LOSSES = {"grpo": grpo_losses, "dpo": dpo_losses}


@dataclass
class Policy:
    """How a run draws: by the policy that it trains, without truncation."""

    config: NarAlignConfig
    pipe: Any
    accelerator: Accelerator

    def draw(self, prompts: list[str], seeds: list[int]) -> Float[Tensor, "b 3 h w"]:
        """Images of the present policy, one per prompt, each from the generator of its seed."""
        ids = self.draw_ids(*self.conditions(prompts), seeds)
        return torch.cat([self.pipe.preview(part) for part in ids.split(DRAW_BATCH)])

    def conditions(self, prompts: list[str]) -> tuple[Tensor, Tensor | None]:
        """Conditions of prompts, which are the classes' names where the model has classes."""
        if self.pipe.transformer.config.condition == "text":
            return self.pipe.conditions(prompts, None, 1)
        return self.pipe.conditions(None, prompts, 1)

    def draw_ids(
        self, condition: Tensor, mask: Tensor | None, seeds: list[int]
    ) -> Int[Tensor, "b n"]:
        """Tokens of pictures, each drawn from the generator of its seed."""
        parts = []
        for start in range(0, len(seeds), DRAW_BATCH):
            piece = slice(start, start + DRAW_BATCH)
            with self.accelerator.autocast():
                ids = generate_ids(
                    self.pipe.transformer,
                    condition[piece],
                    condition_mask=None if mask is None else mask[piece],
                    guidance_scale=self.config.guidance_scale,
                    temperature=self.config.temperature,
                    generator=[torch.Generator().manual_seed(seed) for seed in seeds[piece]],
                )
            parts.append(ids)
        return torch.cat(parts)


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
        run = open_session(config, reward=reward, pipe=pipe)
        run.stop_asked = stop_asked
        try:
            begin(run, judge)
            fit(run, losses, figures, judge=judge, on_step=on_step)
            return finish(run, model_card)
        finally:
            end_training(run.accelerator)


def open_session(config: NarAlignConfig, *, reward: Any = None, pipe: Any = None) -> Run:
    """Check everything the user gave, load it, and make the run's folder last."""
    check_folder(config.out, config.overwrite, config.resume)
    check_login(config.push_to_hub)
    prompts = training_prompts(config)
    device = torch_device(config.device) if pipe is None else pipe.transformer.device
    accelerator = make_accelerator(config, device)
    groups, processes = config.batch_size // config.group_size, accelerator.num_processes
    if groups % processes:
        raise ValueError(
            f"batch_size is {config.batch_size}, which makes {groups} groups of "
            f"{config.group_size}; their number must be a multiple of the {processes} processes"
        )
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
    schedule = make_schedule(config, optimizer)
    drawn = {"temperature": config.temperature, "guidance_scale": config.guidance_scale}
    return Run(
        config=config,
        folder=open_folder(config, accelerator, "nar align"),
        accelerator=accelerator,
        model=pipe.transformer,
        parameters=parameters,
        optimizer=accelerator.prepare(optimizer),
        schedule=schedule,
        contents={"prompts": digest_of(prompts)},
        max_grad_norm=config.max_grad_norm,
        pipe=pipe,
        reward=reward,
        prompts=prompts,
        sampler=Policy(config, pipe, accelerator),
        picture_settings=drawn,
        periods=(pipe.image_tokenizer.config.image_size[0] // pipe.transformer.grid_shape[-2],),
        # the settings that make sampling the trained policy, for whoever loads the LoRA
        lora_metadata={POLICY_KEY: json.dumps(drawn | {"top_k": 0, "top_p": 1.0})},
    )


def losses(run: Run, update: int) -> Iterator[Part]:
    """Draw this process's images of an update; their loss, one forward pass after the other.

    Raises Diverged for what is not finite and Interrupted once somebody asks, in any process.
    """
    with seeded(image_seed("update", run.config.seed, update, run.accelerator.process_index)):
        with agreed(run):
            sampled = sample_groups(run, update)
        total = 0.0
        for part in LOSSES[run.config.method](run, sampled):
            total += part.figures["loss"]
            with run.accelerator.accumulate(run.model):
                yield part
        with agreed(run):
            if not math.isfinite(total):
                raise Diverged(f"the loss is {total}")
    average_gradients(run)


@torch.no_grad()
def sample_groups(run: Run, update: int) -> Sampled:
    """Draw and score this process's groups of an update.

    Raises Diverged where a score is not finite.
    """
    c, pipe = run.config, run.pipe
    share = c.batch_size // c.group_size // run.accelerator.num_processes
    first = run.accelerator.process_index * share
    groups = range(first, first + share)
    rows = draw_prompts(len(run.prompts), seed=c.seed, update=update, indices=groups)
    prompts, metadata = run.prompts.pick(rows, c.group_size)
    indices = range(first * c.group_size, (first + share) * c.group_size)
    seeds = [image_seed("sample", c.seed, update, index) for index in indices]
    condition, mask = run.sampler.conditions(prompts)
    ids = run.sampler.draw_ids(condition, mask, seeds)
    images = torch.cat([pipe.preview(part) for part in ids.split(DRAW_BATCH)])
    members = [group for group in groups for _ in range(c.group_size)]
    terms = image_terms(run, images, prompts, metadata, members, update, indices)
    scores = run.reward.combine(terms).to(images.device)
    return Sampled(ids, condition, mask, terms, scores)


def figures(run: Run, parts: list[Part]) -> dict[str, Any]:
    """Means over an update's images in all processes."""
    sampled, gather = parts[0].sampled, cast(Any, run.accelerator.gather)
    scores = gather(sampled.scores)
    known = scores[scores.isfinite()]  # all, unless a server failed and may
    record: dict[str, Any] = {
        "reward": known.mean().item(),
        "reward_std": known.std(correction=0).item(),
        "terms": means_of({name: gather(score) for name, score in sampled.terms.items()}),
        "flat_groups": flat_share(run, scores, run.config.group_size),
    }
    if len(known) < len(scores):
        record["dropped"] = 1 - len(known) / len(scores)
    for name in parts[0].figures:
        value = sum(part.figures[name] for part in parts)
        record[name] = gather(torch.tensor([value], device=sampled.ids.device)).mean().item()
    return record
