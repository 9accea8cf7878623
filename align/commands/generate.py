"""What `align generate`, `models` and `rewards` do."""

from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from align.config.commands import GenerateConfig
from align.diffusion.denoisers import latent_frames
from align.diffusion.prompt_limits import warn_about_prompts
from align.diffusion.sample import OnStep, generate
from align.diffusion.schedules import check_schedule, set_scheduler
from align.language.prompts import load_prompts
from align.models.load import EMBEDDED, embedded_models, load_pipeline, torch_device
from align.rewards import load_reward
from align.rewards.catalogue import SETS
from align.rewards.frames import frame_terms
from align.rewards.groups import pointwise
from align.rewards.listing import list_rewards
from align.runs.clips import save_clip
from align.runs.folder import check_folder, image_grid, log_metrics, open_run, save_image

GRID_LIMIT = 64  # images in the overview picture


def generate_images(config: GenerateConfig) -> Path:
    """Write the images of a GenerateConfig into a run's folder and return the folder.

    `images/0000.png` and so on, prompt by prompt, videos as `0000.gif`; `metrics.jsonl` has a line
    for each with its file, prompt, seed and scores; `grid.png` shows the first of them together.
    """
    from tqdm import tqdm

    prompts, metadata = _prompts(config)
    check_folder(config.out, config.overwrite)
    reward = load_reward(config.reward, torch_device(config.device)) if config.reward else None
    if reward:
        pointwise(reward, "generate")
    pipe = load_pipeline(
        config.model,
        lora=config.lora,
        device=config.device,
        dtype=config.dtype,
        attention=config.attention,
    )
    set_scheduler(pipe, config.scheduler)
    check_schedule(pipe, config.num_inference_steps, config.eta, config.height, config.width)
    warn_about_prompts(pipe, prompts)
    latent_frames(pipe, config.num_frames)
    noise = load_noise(config.noise, len(prompts)) if config.noise else None

    folder = open_run(
        config.out,
        config,
        config.overwrite,
        command="generate",
        scheduler=type(pipe.scheduler).__name__,
    )
    shown: list[Tensor] = []
    with tqdm(total=len(prompts), unit="image", disable=len(prompts) == 1) as progress:
        for start in range(0, len(prompts), config.batch_size):
            batch = range(start, min(start + config.batch_size, len(prompts)))
            part = slice(batch.start, batch.stop)
            images = generate_batch(config, pipe, prompts[part], batch, noise)
            given = images, prompts[part], metadata[part], config.reward_every
            terms = frame_terms(reward, *given) if reward else {}
            totals = reward.combine(terms) if reward else None
            for row, index in enumerate(batch):
                scores = {name: score[row] for name, score in terms.items()}
                total = {} if totals is None else {"reward": totals[row]}
                _save(config, pipe, folder, index, prompts[index], images[row], total | scores)
            first = images if images.ndim == 4 else images[:, 0]  # of videos, their first frames
            shown += first[: max(0, GRID_LIMIT - len(shown))].cpu()
            progress.update(len(batch))
    if len(shown) > 1:
        save_image(
            folder / "grid.png",
            image_grid(torch.stack(shown)),
            prompt="\n".join(dict.fromkeys(prompts[: len(shown)])),
            seed=config.seed,
            model=config.model,
        )
    return folder


def _prompts(config: GenerateConfig) -> tuple[list[str], list[dict[str, Any]]]:
    """Every image's prompt and metadata: arguments first, then the file, each num_images times."""
    prompts, metadata = list(config.prompt), [{} for _ in config.prompt]
    if config.prompts:
        more = load_prompts(config.prompts)
        prompts, metadata = prompts + more.prompts, metadata + more.metadata
    if not prompts:
        raise ValueError("there is no prompt; give one as an argument, or --prompts FILE")
    if any(not prompt.strip() for prompt in prompts):
        raise ValueError("a prompt is empty; say what the image should show")
    repeats = range(config.num_images)
    return [p for p in prompts for _ in repeats], [m for m in metadata for _ in repeats]


def generate_batch(
    config: GenerateConfig,
    pipe: Any,
    prompts: list[str],
    indices: range,
    noise: Tensor | None = None,
    on_step: OnStep | None = None,
) -> Float[Tensor, "b *t 3 h w"]:
    """Images `indices` of a command, in [0, 1], one for each of the prompts."""
    with torch.no_grad():
        return generate(
            pipe,
            prompts,
            negative_prompts=config.negative_prompt,
            seed=config.seed + indices.start,
            latents=None if noise is None else noise[indices.start : indices.stop],
            num_inference_steps=config.num_inference_steps,
            guidance_scale=config.guidance_scale,
            eta=config.eta,
            height=config.height,
            width=config.width,
            num_frames=config.num_frames,
            on_step=on_step,
        )


def picture_settings(config: GenerateConfig, pipe: Any) -> dict[str, Any]:
    """What a PNG says, beside its prompt and seed, of how it was made."""
    return {
        "model": config.model,
        "negative_prompt": config.negative_prompt,
        "num_inference_steps": config.num_inference_steps,
        "scheduler": type(pipe.scheduler).__name__,
        "guidance_scale": config.guidance_scale,
        "eta": config.eta or None,
        "lora": config.lora,
        "noise": config.noise,
    }


def _save(
    config: GenerateConfig,
    pipe: Any,
    folder: Path,
    index: int,
    prompt: str,
    image: Tensor,
    scores: dict[str, Tensor],
) -> None:
    ending = "png" if image.ndim == 3 else "gif"
    name, seed = f"images/{index:04d}.{ending}", config.seed + index
    facts = {"prompt": prompt, "seed": seed, **picture_settings(config, pipe)}
    if image.ndim == 3:
        save_image(folder / name, image, **facts)
    else:
        save_clip(folder / name, image, fps=config.fps, **facts)
    log_metrics(folder, index=index, image=name, prompt=prompt, seed=seed, **scores)


def load_noise(path: str | Path, count: int) -> Float[Tensor, "b ..."]:
    """The noise of a safetensors file (key `noise`, unit variance), for `count` images.

    One noise serves every image. Raises FileNotFoundError for a missing file, ValueError for one
    that has no `noise`, or neither one nor `count` of them.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not Path(path).is_file():
        raise FileNotFoundError(f"no noise file {path}")
    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is not a safetensors file ({error})") from error
    if "noise" not in tensors:
        raise ValueError(f"{path} has no key `noise`; it has {', '.join(tensors) or 'none'}")
    noise = tensors["noise"].float()
    noise = noise if noise.ndim > 3 else noise[None]
    if len(noise) not in (1, count):
        raise ValueError(f"{path} holds {len(noise)} noises for {count} images; 1 or {count} fit")
    return noise.expand(count, *noise.shape[1:])


def model_table() -> str:
    """The models that ship with the package, and what else --model takes."""
    from align.diffusion.denoisers import FAMILIES

    lines = [f"{'model':<20}{'size':>9}  state      licence  weights in"]
    for name in embedded_models():
        folder = EMBEDDED / name.removeprefix("embedded/")
        lines.append(f"{name:<20}{_size(folder):>9}  installed  CC0-1.0  {folder}")
    lines += ["", "A diffusers folder, single file or Hub id of any of these pipelines works too:"]
    return "\n".join([*lines, ", ".join(FAMILIES)])


def reward_table() -> str:
    """Every reward and judge that an expression can name: what, range, size, state, licence."""
    lines = [
        f"{'name':<19}{'kind':<8}{'range':<15}{'size':>9}  {'state':<11}{'licence':<14}measures"
    ]
    for one in list_rewards():
        kind = "judge" if one.judge_only else "reward"
        size = f"{one.size / 1e6:.1f} MB" if one.size < 1e9 else f"{one.size / 1e9:.1f} GB"
        state = "installed" if one.installed else "missing"
        start = f"{one.name:<19}{kind:<8}{one.range:<15}{size if one.size else '-':>9}  {state:<11}"
        lines.append(f"{start}{one.licence or '-':<14}{one.measures}")
    lines += [f"{name:<19}{'set':<49}{text}" for name, text in SETS.items()]
    lines += ["", f"weights of scenes-* in {EMBEDDED / 'rewards'};"]
    return "\n".join(
        [*lines, "`align fetch NAME` downloads those of published rewards, which say missing"]
    )


def _size(folder: Path) -> str:
    total = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    return f"{total / 1e6:.1f} MB"
