"""What `align optimize` does: prompt by prompt into a run's folder, in any number of processes."""

import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import torch

from align.config.optimize import SEARCHES, OptimizeConfig, OptimizeRunConfig
from align.diffusion.denoisers import refuse_videos
from align.diffusion.prompt_limits import warn_about_prompts
from align.diffusion.sample import generate
from align.diffusion.schedules import check_schedule, set_scheduler
from align.language.prompts import load_prompts
from align.models.load import load_pipeline, torch_device
from align.noise_opt.folder import PromptFolder, folder_of, result_of
from align.noise_opt.pictures import save_gains
from align.noise_opt.search import check_budget, measure_backward_cost, optimize
from align.noise_opt.weights import weigh
from align.rewards import load_reward
from align.rewards.catalogue import SCENES_REWARD
from align.rewards.groups import pointwise
from align.runs.files import claimed, write_json
from align.runs.folder import check_folder, load_config, log_metrics, open_run, save_image

REPEAT = 1_000_000  # seeds between two occurrences of the same prompt
WAIT = 0.5  # seconds between looks at prompts that other processes work on
# Settings that a resumed run may change: they leave the results alone.
_FREE = ("out", "overwrite", "resume", "explain", "device", "attention", "prompt", "prompts")


@dataclasses.dataclass(frozen=True)
class _Job:
    """One prompt of a run."""

    index: int
    prompt: str
    metadata: dict[str, Any]
    seed: int


def optimize_prompts(config: OptimizeRunConfig) -> Path:
    """Search the best noise of every prompt; returns the run's folder.

    `prompts/0000/` and so on, as `align.noise_opt.folder` says, `metrics.jsonl` with a line a
    prompt, `images/` with the best ones, `gains.png`, and `report.json` in the end. Prompts that
    are done stay as they are, so a stopped run goes on, and processes given the same folder by
    `--resume` share the prompts. A prompt depends on its text, the seed and the settings alone.

    Raises ValueError where the settings or the prompts do not fit, or are not those of the run
    that is resumed.
    """
    jobs = read_jobs(config)
    if config.resume is None:
        check_folder(config.out, config.overwrite)
    reward = load_reward(default_reward(config), torch_device(config.device))
    if config.method != "bon":
        pointwise(reward, f"method {config.method}")
    for job in jobs:
        weigh(reward, job.prompt, config.own("weights"), config.category)
    pipe: Any = load_pipeline(
        config.model,
        lora=config.lora,
        device=config.device,
        dtype=config.dtype,
        attention=config.attention,
    )
    refuse_videos(pipe, "optimize")
    set_scheduler(pipe, config.scheduler)
    steps = config.num_inference_steps
    check_schedule(pipe, steps, height=config.height, width=config.width)
    if steps is not None:
        check_budget(config, steps)
    warn_about_prompts(pipe, [job.prompt for job in jobs])
    run = _open(config, type(pipe.scheduler).__name__)
    shared = dataclasses.replace(config, backward_cost=_backward_cost(run, pipe, jobs[0], config))
    open_jobs, waiting = list(jobs), False
    while open_jobs:
        left = [job for job in open_jobs if not _try(run, pipe, reward, shared, job)]
        waiting = len(left) == len(open_jobs)
        open_jobs = left
        if waiting:
            time.sleep(WAIT)
    _report(run, jobs)
    return run


def explain(config: OptimizeRunConfig) -> str:
    """Category and weights of every prompt, and why, in words; no model is loaded."""
    reward = load_reward(default_reward(config), torch_device(config.device))
    texts = []
    for job in read_jobs(config):
        weighing = weigh(reward, job.prompt, config.own("weights"), config.category)
        texts.append(weighing.text(job.prompt))
    return "\n\n".join(texts)


def default_reward(config: OptimizeRunConfig) -> str:
    """The reward named, or that of embedded models. Raises ValueError where there is no default."""
    if config.reward is not None:
        return config.reward
    if config.model.startswith("embedded/"):
        return SCENES_REWARD
    raise ValueError(f"--reward is needed with {config.model}: what to maximize")


def read_jobs(config: OptimizeRunConfig) -> list[_Job]:
    """All prompts of a run: arguments first, then the file.

    Each starts from the run's seed; one that occurs again from other seeds.
    """
    prompts, metadata = list(config.prompt), [{} for _ in config.prompt]
    if config.prompts:
        more = load_prompts(config.prompts)
        prompts, metadata = prompts + more.prompts, metadata + more.metadata
    if not prompts:
        raise ValueError("there is no prompt; give one as an argument, or --prompts FILE")
    jobs = []
    for index, (prompt, extra) in enumerate(zip(prompts, metadata, strict=True)):
        if not prompt.strip():
            raise ValueError("a prompt is empty; say what the image should show")
        seed = config.seed + REPEAT * prompts[:index].count(prompt)
        jobs.append(_Job(index, prompt, extra, seed))
    return jobs


def _open(config: OptimizeRunConfig, scheduler: str) -> Path:
    """The run's folder; one that is resumed has to have the same settings."""
    if config.resume is not None and (Path(config.resume) / "run.json").is_file():
        former = load_config(config.resume, OptimizeRunConfig, "optimize")
        for name in (field.name for field in dataclasses.fields(former)):
            old, new = getattr(former, name), getattr(config, name)
            if name not in _FREE and old != new:
                raise ValueError(
                    f"{name} is {new!r}, but the run in {config.resume} has {old!r}; resume it "
                    "with its own settings, or give another --out"
                )
        return Path(config.resume)
    return open_run(
        config.out,
        config,
        config.overwrite,
        config.resume,
        command="optimize",
        scheduler=scheduler,
    )


def _backward_cost(run: Path, pipe: Any, job: _Job, config: OptimizeRunConfig) -> float | None:
    """The cost of a backward pass, measured once a run, so that all processes count alike."""
    follows = SEARCHES[config.method].pull is not None
    if config.backward_cost is not None or config.budget is None or not follows:
        return config.backward_cost
    path = run / "costs.json"
    with claimed(run / ".locks" / "costs", wait=True):
        if not path.is_file():
            cost = round(measure_backward_cost(pipe, job.prompt, config), 3)
            write_json(path, {"backward_cost": cost})
        return json.loads(path.read_text(encoding="utf-8"))["backward_cost"]


def _try(run: Path, pipe: Any, reward: Any, config: OptimizeRunConfig, job: _Job) -> bool:
    """Do a prompt unless it is done or another process is at it; whether it is done now."""
    with claimed(run / ".locks" / f"{job.index:04d}") as mine:
        if result_of(run, job.index, job.prompt) is not None:
            return True
        if not mine:
            return False
        _search(run, pipe, reward, config, job)
        return True


def _search(run: Path, pipe: Any, reward: Any, config: OptimizeRunConfig, job: _Job) -> None:
    from tqdm import tqdm

    names = [field.name for field in dataclasses.fields(OptimizeConfig)]
    values: dict[str, Any] = {name: getattr(config, name) for name in names}
    values["seed"] = job.seed
    settings = picture_settings(config, pipe)
    folder = PromptFolder(
        folder_of(run, job.index), job.prompt, job.seed, settings, keep=config.best
    )
    step = None
    with tqdm(desc=job.prompt[:40], unit="step", leave=False) as progress:
        for step in optimize(
            pipe, job.prompt, reward, OptimizeConfig(**values), metadata=job.metadata
        ):
            folder.add(step)
            progress.update()
            progress.set_postfix(best=f"{step.best_total:.3g}")
    if step is None:
        raise RuntimeError(f"the budget {config.budget} was over before the first image")
    if config.render_model or config.render_steps:
        _render(folder, pipe, config, job, step.best_noise)
    name = f"images/{job.index:04d}.png"
    save_image(run / name, step.best_image, prompt=job.prompt, seed=job.seed, **settings)
    result = folder.finish(step)
    with claimed(run / ".locks" / "metrics", wait=True):
        kept = ("prompt", "seed", "initial_total", "best_total", "iterations")
        log_metrics(
            run,
            index=job.index,
            image=name,
            seconds=step.seconds,
            **{k: result[k] for k in kept},
            **step.best_terms,
        )


def picture_settings(config: OptimizeRunConfig, pipe: Any) -> dict[str, Any]:
    """What a PNG says, beside its prompt and seed, of how it was made."""
    return {
        "model": config.model,
        "method": config.method,
        "reward": default_reward(config),
        "num_inference_steps": config.num_inference_steps,
        "scheduler": type(pipe.scheduler).__name__,
        "guidance_scale": config.guidance_scale,
        "lora": config.lora,
    }


def _render(
    folder: PromptFolder, pipe: Any, config: OptimizeRunConfig, job: _Job, noise: torch.Tensor
) -> None:
    """The best noise by another model, or with another number of steps, as render.png."""
    if config.render_model:
        kind: dict[str, Any] = {"device": config.device, "dtype": config.dtype}
        pipe = load_pipeline(config.render_model, attention=config.attention, **kind)
    steps = config.render_steps
    with torch.no_grad():
        image = generate(
            pipe,
            [job.prompt],
            seed=job.seed,
            latents=noise[None],
            height=config.height,
            width=config.width,
            num_inference_steps=steps,
            guidance_scale=None if config.render_model else config.guidance_scale,
        )[0]
    settings: dict[str, Any] = folder.settings | {"num_inference_steps": steps}
    if config.render_model:  # drawn as that model draws, and without LoRA
        settings |= {"model": config.render_model, "guidance_scale": None, "lora": ()}
        settings |= {"scheduler": type(pipe.scheduler).__name__}
    save_image(folder.path / "render.png", image, prompt=job.prompt, seed=job.seed, **settings)


def _report(run: Path, jobs: list[_Job]) -> None:
    """report.json and gains.png over all prompts; every process writes the same."""
    results = [result for job in jobs if (result := result_of(run, job.index, job.prompt))]
    count = len(results)
    means = {
        name: sum(result[name] for result in results) / count
        for name in ("initial_total", "best_total", "generator_forwards", "generator_backwards")
    }
    notes = [f"{r['prompt']}: {note}" for r in results for note in r["notes"]]
    write_json(run / "report.json", {"prompts": count, "means": means, "notes": notes})
    save_gains(run / "gains.png", results)


def summary(run: Path) -> str:
    """What a finished run has reached, in two lines."""
    report = json.loads((run / "report.json").read_text(encoding="utf-8"))
    means = report["means"]
    return (
        f"weighted score: {means['initial_total']:.4g} -> {means['best_total']:.4g} "
        f"(mean of {report['prompts']} prompts)\n{run}"
    )


def run(config: OptimizeRunConfig) -> str:
    """What `align optimize` does; returns what to print."""
    return explain(config) if config.explain else summary(optimize_prompts(config))
