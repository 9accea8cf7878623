"""`align rewards stress`: how far a reward can be raised before a judge, not optimized, falls.

From the noise of each prompt (or from its final latents) the gradient of the reward is followed in
steps of one length, and what is drawn on the way is judged. As long as the judge rises with the
reward, the rise is real; where they part, the optimizer has found what the reward does not see.
"""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from numpy import ndarray
from torch import Tensor

from align.config.checks import to_dict
from align.config.commands import StressConfig
from align.diffusion.denoisers import default_steps, image_size, refuse_videos
from align.diffusion.schedules import set_scheduler
from align.evaluation.judging import Judges, judge_expression, terms_of, trained_reward
from align.evaluation.stress_ascent import ascend
from align.evaluation.stress_report import save_plot, summarize
from align.language.prompts import PromptSet, default_prompts, load_prompts
from align.models.load import load_pipeline, torch_device
from align.noise_opt.paint import check_grad_steps
from align.rewards import load_judge, load_reward
from align.rewards.groups import pointwise
from align.rewards.reward import Reward
from align.runs.files import write_json
from align.runs.folder import check_folder, image_grid, log_metrics, open_run, save_image
from align.training.pictures import spread

log = logging.getLogger(__name__)
SHOWN = 9  # pictures before and after


@dataclass(frozen=True)
class Course:
    """The ascents of all prompts."""

    reward: Float[ndarray, "steps n"]
    judge: Float[ndarray, "steps n"]
    still: int
    """Prompts whose gradient was 0, or not finite, in every step."""
    pictures: dict[int, tuple[Tensor, Tensor]]
    """(before, after) of those that are shown, by the prompt's row."""


def run(config: StressConfig) -> str:
    """What `align rewards stress` does; returns its finding as a sentence.

    The run's folder gets `stress.json` (means by step with intervals, scores of every prompt),
    `stress.png` and `before-after.png`; raises as `ascend`, `align.load_reward` and
    `align.language.prompts.load_prompts`, before anything is written.
    """
    check_folder(config.out, config.overwrite)
    prompts = _prompts(config)
    reward = _reward(config)
    pipe: Any = load_pipeline(
        config.model,
        lora=config.lora,
        device=config.device,
        dtype=config.dtype,
        attention=config.attention,
    )
    refuse_videos(pipe, "rewards stress")
    if config.scheduler:
        set_scheduler(pipe, config.scheduler)
    expression, judge = _judge(config, prompts, pipe)
    steps = (
        default_steps(pipe) if config.num_inference_steps is None else config.num_inference_steps
    )
    check_grad_steps(pipe, steps, config.grad_steps)
    for scorer, gradient in ((reward, True), (judge, False)):
        _try(scorer, prompts, gradient)
    folder = open_run(config.out, config, config.overwrite, command="rewards stress")
    course = _ascents(config, pipe, prompts, reward, judge, folder)
    categories = [str(row.get("category", "")) for row in prompts.metadata]
    report = summarize(
        course.reward, course.judge, categories, config.reward, expression, course.still
    )
    rows = [
        {
            "prompt": prompt,
            "category": categories[i],
            "seed": config.seed + i,
            "reward": course.reward[:, i].tolist(),
            "judge": course.judge[:, i].tolist(),
        }
        for i, prompt in enumerate(prompts.prompts)
    ]
    write_json(folder / "stress.json", {"settings": to_dict(config), **report, "prompts": rows})
    whose = {"noise": "the noise's", "latents": "the latents'"}[config.what]
    save_plot(folder / "stress.png", report, f"step ({config.step_length:.3g} of {whose} length)")
    _save_pictures(config, course, prompts, folder / "before-after.png")
    return f"{report['sentence']}\n{folder}"


def _try(scorer: Reward, prompts: PromptSet, gradient: bool) -> None:
    """Score a grey picture for every prompt, so that a fault comes before the work."""
    grey = torch.full((1, 3, 64, 64), 0.5)
    with torch.no_grad():
        scorer(grey.expand(len(prompts), -1, -1, -1), prompts.prompts, prompts.metadata)
    if gradient:
        with torch.enable_grad():
            scorer(grey.requires_grad_(), prompts.prompts[:1], prompts.metadata[:1])


def _prompts(config: StressConfig) -> PromptSet:
    """The prompts of a run, evenly spread over their set."""
    prompts = load_prompts(config.prompts or default_prompts(config.model))
    rows = spread(len(prompts), config.num_prompts)
    return PromptSet(
        prompts.name,
        [prompts.prompts[row] for row in rows],
        [prompts.metadata[row] for row in rows],
    )


def _reward(config: StressConfig) -> Reward:
    """What is raised. Raises ValueError where a term of it has no gradient."""
    if not config.reward:
        raise ValueError("--reward is needed: what to raise, such as scenes-clip")
    reward = pointwise(load_reward(config.reward, torch_device(config.device)), "rewards stress")
    flat = [n for n, f in reward.functions.items() if not getattr(f, "differentiable", True)]
    if flat:
        raise ValueError(
            f"{', '.join(flat)} has no gradient to follow; give a --reward of differentiable terms"
        )
    return reward


def _judge(config: StressConfig, prompts: PromptSet, pipe: Any) -> tuple[str, Reward]:
    """The judge and its expression. Raises ValueError for one that is optimized here."""
    expression, scenes = judge_expression(
        config.judge, prompts, image_size(pipe, config.height, config.width)
    )
    judge = load_judge(expression, torch_device(config.device))
    raised = Judges(expression, judge, tuple(terms_of(config.reward)), None, scenes)
    if raised.warning:
        raise ValueError(raised.warning.removeprefix("Warning: "))
    trained = [reward for lora in config.lora if (reward := trained_reward(lora))]
    known = tuple(name for reward in trained for name in terms_of(reward))
    if warning := Judges(expression, judge, known, None, scenes).warning:
        log.warning(warning)
    return expression, judge


def _ascents(
    config: StressConfig, pipe: Any, prompts: PromptSet, reward: Reward, judge: Reward, folder: Path
) -> Course:
    """The ascents of all prompts, batch by batch; means of each go into metrics.jsonl."""
    from tqdm import tqdm

    shown, total = _shown(prompts), len(prompts)
    rewards, judged = torch.zeros(2, config.steps + 1, total, dtype=torch.float64)
    pictures: dict[int, tuple[Tensor, Tensor]] = {}
    moved = torch.zeros(total, dtype=torch.bool)
    batches = [
        range(i, min(i + config.batch_size, total)) for i in range(0, total, config.batch_size)
    ]
    with tqdm(total=len(batches) * (config.steps + 1), unit="step") as progress:
        for batch in batches:
            rows, first = slice(batch.start, batch.stop), None
            for moment in ascend(
                pipe,
                prompts.prompts[rows],
                [config.seed + i for i in batch],
                reward,
                judge,
                metadata=prompts.metadata[rows],
                what=config.what,
                steps=config.steps,
                step_length=config.step_length,
                num_inference_steps=config.num_inference_steps,
                guidance_scale=config.guidance_scale,
                grad_steps=config.grad_steps,
                checkpointing=config.checkpointing,
                height=config.height,
                width=config.width,
            ):
                rewards[moment.step, rows], judged[moment.step, rows] = moment.reward, moment.judge
                means = {"reward": moment.reward.mean(), "judge": moment.judge.float().mean()}
                log_metrics(folder, first=batch.start, step=moment.step, **means)
                moved[rows] |= moment.moves
                images = moment.images[[i - batch.start for i in batch if i in shown]].cpu()
                first = images if first is None else first
                progress.update()
            assert first is not None  # step 0
            kept = [i for i in batch if i in shown]
            pictures |= dict(zip(kept, zip(first, images, strict=True), strict=True))
    return Course(rewards.numpy(), judged.numpy(), int((~moved).sum()), pictures)


def _shown(prompts: PromptSet) -> list[int]:
    """The first prompt of each category, or the first of all where there are no categories."""
    first: dict[str, int] = {}
    for i, row in enumerate(prompts.metadata):
        first.setdefault(str(row.get("category", "")), i)
    return list(first.values() if len(first) > 1 else range(len(prompts)))[:SHOWN]


def _save_pictures(config: StressConfig, course: Course, prompts: PromptSet, path: Path) -> None:
    """Above the pictures at the start, below them those after the last step."""
    rows = sorted(course.pictures)
    grid = torch.stack([course.pictures[i][after] for after in (0, 1) for i in rows])
    save_image(
        path,
        image_grid(grid, columns=len(rows)),
        prompt="\n".join(prompts.prompts[i] for i in rows),
        seed=config.seed,
        model=config.model,
        reward=config.reward,
        what=config.what,
        steps=config.steps,
        step_length=config.step_length,
        num_inference_steps=config.num_inference_steps,
        guidance_scale=config.guidance_scale,
        scheduler=config.scheduler,
        lora=config.lora,
    )
