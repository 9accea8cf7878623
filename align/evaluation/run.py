"""The run that `align evaluate` and `align compare` share: every method on every prompt."""

import dataclasses
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from align.config.budget import Budget
from align.config.evaluate import CompareConfig, EvaluateConfig
from align.diffusion.denoisers import image_size, refuse_videos
from align.diffusion.schedules import check_schedule, set_scheduler
from align.evaluation.benchmarks import choose, load_benchmark
from align.evaluation.judging import Judges, judge_images, load_judges
from align.evaluation.methods import Made, Method, parse_methods, run
from align.evaluation.pricing import Costs, Task, measure_costs, measure_seconds
from align.evaluation.spending import check_quiet, load_average
from align.evaluation.work import (
    check_out,
    do_all,
    open_shared_run,
    read_all,
)
from align.language.prompts import PromptSet, default_prompts
from align.models.load import load_pipeline, torch_device
from align.rewards import load_reward
from align.rewards.catalogue import SCENES_REWARD
from align.rewards.groups import pointwise
from align.rewards.reward import Reward
from align.runs.files import claimed, write_json
from align.runs.folder import save_image

AnyConfig = EvaluateConfig | CompareConfig
STRIDE = 2**20  # between the seeds of a prompt's pictures: candidates of one never meet another's


@dataclass(frozen=True)
class Plan:
    """Everything that is decided before the first picture is drawn."""

    config: AnyConfig
    command: str
    folder: Path
    prompts: PromptSet
    methods: list[Method]
    budgets: list[Budget | None]
    repeats: int
    judges: Judges
    pipes: dict[str, Any]
    """The pipeline of each method, by its label."""
    reward: Reward | None
    load: float
    """Of the machine, before the start."""
    costs: Costs | None


def make_plan(
    config: AnyConfig,
    command: str,
    budgets: Sequence[Budget | None],
    repeats: int,
    pipe: Any = None,
) -> Plan:
    """Check everything, load everything, open the folder. Raises ValueError, FileNotFoundError."""
    check_out(config)
    parsed = parse_methods(config.methods)
    config = with_reward(config, parsed)
    prompts = load_benchmark(config.prompts or default_prompts(config.model))
    prompts = choose(prompts, config.categories, config.per_category)
    in_seconds = any(budget is not None and budget.unit == "s" for budget in budgets)
    load = check_quiet(config.allow_busy or not in_seconds)
    pipes = _load_pipes(config, parsed, pipe)
    size = _picture_size(pipes, parsed)
    judges = load_judges(config, prompts, parsed, size)
    searches = any(method.searches for method in parsed)
    reward = None
    if config.reward and searches:
        reward = load_reward(config.reward, torch_device(config.device))
    if reward:
        pointwise(reward, "a comparison of methods")
    drawn = [pipes[method.label] for method in parsed if method.nar is None]
    scheduler = type(drawn[0].scheduler).__name__ if drawn else None
    folder = open_shared_run(config, command, scheduler=scheduler)
    plan = Plan(
        config=config,
        command=command,
        folder=folder,
        prompts=prompts,
        methods=parsed,
        budgets=list(budgets),
        repeats=repeats,
        judges=judges,
        pipes=pipes,
        reward=reward,
        load=load,
        costs=None,
    )
    timed = in_seconds or any(method.follows_gradients for method in parsed)
    return replace(plan, costs=_shared_costs(plan)) if timed else plan


def with_reward(config: AnyConfig, methods: Sequence[Method]) -> AnyConfig:
    """The config with a reward where a method searches by one: by default theirs.

    Raises ValueError where it is missing with another model.
    """
    searching = [method.label for method in methods if method.searches]
    if config.reward or not searching:
        return config
    if not config.model.startswith("embedded/"):
        raise ValueError(f"--reward is needed: what {searching[0]} is to choose by")
    return replace(config, reward=SCENES_REWARD)


def _load_pipes(config: AnyConfig, methods: list[Method], pipe: Any) -> dict[str, Any]:
    """A pipeline for each method; methods with the same LoRAs share one."""
    by_loras: dict[tuple[str, ...], Any] = {} if pipe is None else {config.lora: pipe}
    pipes = {}
    for method in methods:
        if method.nar is not None:
            from align.nar.load import load_nar_pipeline

            pipes[method.label] = load_nar_pipeline(
                method.nar, config.device, config.dtype, method.loras
            )
            continue
        loras = (*config.lora, *method.loras)
        if loras not in by_loras:
            by_loras[loras] = load_pipeline(
                config.model,
                lora=loras,
                device=config.device,
                dtype=config.dtype,
                attention=config.attention,
            )
        pipes[method.label] = by_loras[loras]
    for diffusion in by_loras.values():
        refuse_videos(diffusion, "evaluate")
        set_scheduler(diffusion, config.scheduler)
        check_schedule(diffusion, config.num_inference_steps)
    return pipes


def _picture_size(pipes: dict[str, Any], methods: Sequence[Method]) -> tuple[int, int]:
    """Height and width of the pictures; a diffusion model's, where there is one."""
    for method in sorted(methods, key=lambda m: m.nar is not None):
        if method.nar is None:
            return image_size(pipes[method.label], None, None)
    return tuple(pipes[methods[0].label].image_tokenizer.config.image_size)


def _shared_costs(plan: Plan) -> Costs:
    """Measured once a run and kept, so that every process turns budgets into the same counts."""
    file = plan.folder / "costs.json"
    with claimed(plan.folder / "claims" / "costs.lock", wait=True):
        if not file.is_file():
            ranked = sorted(plan.methods, key=lambda m: (m.nar is not None, not m.searches))
            gradients = any(method.follows_gradients for method in plan.methods)
            costs = measure_costs(task_of(plan, ranked[0], 0, 0), gradients)
            nar = next((m for m in ranked if m.nar is not None), None)
            if nar is not None:
                seconds = measure_seconds(task_of(plan, nar, 0, 0))
                costs = replace(costs, nar_seconds=sum(seconds))
            write_json(file, dataclasses.asdict(costs))
    return Costs(**json.loads(file.read_text(encoding="utf-8")))


def task_of(plan: Plan, method: Method, index: int, repeat: int) -> Task:
    """The task of one picture: the seed depends on the run's seed, prompt and repeat only."""
    config = plan.config
    prompt = plan.prompts.prompts[index]
    first = random.Random(f"align-evaluate-{config.seed}-{prompt}").getrandbits(40)
    return Task(
        pipe=plan.pipes[method.label],
        prompt=prompt,
        metadata=plan.prompts.metadata[index],
        seed=first + STRIDE * repeat,
        reward=plan.reward,
        weights=config.weights,
        num_inference_steps=config.num_inference_steps,
        guidance_scale=config.guidance_scale,
        batch_size=config.batch_size,
        costs=plan.costs,
        nar=method.nar is not None,
    )


def do_prompt(plan: Plan, index: int) -> dict[str, Any]:
    """Every method's pictures of a prompt, judged; the pictures go to `images/`."""
    prompt, metadata = plan.prompts.prompts[index], plan.prompts.metadata[index]
    results = []
    for number, method in enumerate(plan.methods):
        tasks = [task_of(plan, method, index, repeat) for repeat in range(plan.repeats)]
        for repeat, made in enumerate(run(method, tasks, plan.budgets)):
            task = tasks[repeat]
            images = torch.stack([one.image for one in made])
            scores = judge_images(plan.judges, images, prompt, metadata)
            for rank, (one, budget) in enumerate(zip(made, plan.budgets, strict=True)):
                name = f"images/{index:04d}-{number}-{rank}-{repeat}.png"
                _save(plan, name, one, task, method, budget)
                results.append(
                    {
                        "method": method.label,
                        "budget": None if budget is None else str(budget),
                        "repeat": repeat,
                        "seed": task.seed,
                        "image": name,
                        "scores": scores[rank],
                        "spent": {k: round(v, 4) for k, v in vars(one.spent).items()},
                    }
                )
    return {
        "index": index,
        "prompt": prompt,
        "category": metadata["category"],
        "load": round(load_average(), 2),
        "results": results,
    }


def _save(
    plan: Plan, name: str, made: Made, task: Task, method: Method, budget: Budget | None
) -> None:
    save_image(
        plan.folder / name,
        made.image,
        prompt=task.prompt,
        seed=task.seed,
        model=method.nar or plan.config.model,
        num_inference_steps=None if method.nar else task.num_inference_steps,
        scheduler=None if method.nar else type(task.pipe.scheduler).__name__,
        guidance_scale=None if method.nar else task.guidance_scale,
        method=method.label,
        budget=None if budget is None else str(budget),
        lora=method.loras if method.nar else (*plan.config.lora, *method.loras),
    )


def do_run(plan: Plan) -> list[dict[str, Any]] | None:
    """Do what is left of the run; the records of all prompts, None if others still work on some."""
    count = len(plan.prompts)
    do_all(plan.folder, count, lambda index: do_prompt(plan, index))
    return read_all(plan.folder, count)
