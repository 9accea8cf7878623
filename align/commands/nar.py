"""What `align nar generate` and `align nar align` do."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from align.config.nar import NarAlignConfig, NarGenerateConfig, parse_grid
from align.language.prompts import load_prompts
from align.models.load import torch_device
from align.nar.load import load_nar_pipeline as load_nar_pipeline
from align.nar.video_pipeline import NARVideoPipeline, filmstrip
from align.rewards import load_reward
from align.rewards.frames import frame_terms
from align.rewards.groups import pointwise
from align.runs.clips import check_format, save_clip
from align.runs.folder import check_folder, image_grid, log_metrics, open_run, save_image
from align.training.report import summary_by_one

GRID_LIMIT = 64  # images in the overview picture
CANDIDATE_STRIDE = 1_000_003  # between the seeds of an image's candidates


@dataclass(frozen=True)
class Drawn:
    """Pictures `[b, 3, h, w]` or clips `[b, t, 3, h, w]`, their seeds, their scores by name."""

    images: Float[Tensor, "b ..."]
    seeds: list[int]
    scores: dict[str, Tensor]


def draw(
    pipe: Any,
    conditions: list[str],
    seeds: list[int],
    *,
    metadata: list[dict[str, Any]] | None = None,
    reward: Any = None,
    best_of: int = 1,
    **settings: Any,
) -> Drawn:
    """One picture or clip per condition (prompt or class), the best of several by `reward`.

    Candidate j of a picture draws from the generator of seed + j * 1,000,003; `settings` go to
    the pipeline.
    """
    kind = "prompt" if pipe.transformer.config.condition == "text" else "class_labels"
    facts = metadata or [{} for _ in conditions]
    best: Drawn | None = None
    totals = torch.empty(0)
    for candidate in range(best_of):
        chosen = [seed + candidate * CANDIDATE_STRIDE for seed in seeds]
        generators = [torch.Generator().manual_seed(seed) for seed in chosen]
        images: Tensor = pipe(
            **{kind: conditions},
            generator=generators,
            output_type="pt",
            return_dict=False,
            **settings,
        )[0]
        scores = {} if reward is None else _scores(reward, images, conditions, facts)
        if best is None:
            best, totals = Drawn(images, chosen, scores), scores.get("reward", totals)
            continue
        better = scores["reward"] > totals
        totals = torch.where(better, scores["reward"], totals)
        best = Drawn(
            torch.where(better.view(-1, *[1] * (images.ndim - 1)), images, best.images),
            [a if b else old for a, b, old in zip(chosen, better, best.seeds, strict=True)],
            {name: torch.where(better, score, best.scores[name]) for name, score in scores.items()},
        )
    assert best is not None  # best_of is at least 1
    return best


@torch.no_grad()
def _scores(
    reward: Any, images: Tensor, prompts: list[str], facts: list[dict[str, Any]]
) -> dict[str, Float[Tensor, " b"]]:
    """The reward's terms and their combination; of a clip the mean over its frames."""
    terms = frame_terms(reward, images, prompts, facts)
    return terms | {"reward": reward.combine(terms)}


def generate_nar(config: NarGenerateConfig) -> Path:
    """Write the pictures of a config into a run's folder and return it.

    Raises ValueError, TypeError or FileNotFoundError for what the model cannot draw.
    """
    check_folder(config.out, config.overwrite)
    reward = load_reward(config.reward, torch_device(config.device)) if config.reward else None
    if reward:
        pointwise(reward, "nar generate")
    pipe = load_nar_pipeline(config.model, config.device, config.dtype, config.lora)
    conditions, metadata = _conditions(config, pipe)
    _check_clip(config, pipe)
    if config.compile:
        pipe.transformer.compile_repeated_blocks(dynamic=True)
    settings = {
        name: getattr(config, name)
        for name in ("guidance_scale", "temperature", "top_k", "top_p")
        if getattr(config, name) is not None
    }
    folder = open_run(config.out, config, config.overwrite, command="nar generate")
    shown: list[Tensor] = []
    with tqdm(total=len(conditions), unit="image", disable=len(conditions) == 1) as progress:
        for start in range(0, len(conditions), config.batch_size):
            part = slice(start, min(start + config.batch_size, len(conditions)))
            drawn = draw(
                pipe,
                conditions[part],
                [config.seed + index for index in range(part.start, part.stop)],
                metadata=metadata[part],
                reward=reward,
                best_of=config.best_of,
                **settings,
            )
            _save(config, folder, part.start, conditions[part], drawn, settings)
            images = drawn.images if drawn.images.ndim == 4 else filmstrip(drawn.images)
            shown += images[: max(0, GRID_LIMIT - len(shown))].cpu()
            progress.update(part.stop - part.start)
    if len(shown) > 1:
        text = "\n".join(dict.fromkeys(conditions[: len(shown)]))
        sheet = image_grid(torch.stack(shown), 1 if isinstance(pipe, NARVideoPipeline) else None)
        save_image(folder / "grid.png", sheet, prompt=text, seed=config.seed, model=config.model)
    return folder


def _conditions(config: NarGenerateConfig, pipe: Any) -> tuple[list[str], list[dict[str, Any]]]:
    """Every picture's prompt or class, with its metadata; each num_images times."""
    grid = tuple(pipe.transformer.grid_shape)
    if config.grid is not None and parse_grid(config.grid) != grid:
        known = "x".join(str(side) for side in grid)
        raise ValueError(f"grid is {config.grid}; {config.model} draws {known} tokens")
    chosen, facts = list(config.prompt), [{} for _ in config.prompt]
    if config.prompts:
        more = load_prompts(config.prompts)
        chosen, facts = chosen + more.prompts, facts + more.metadata
    if pipe.transformer.config.condition == "class":
        if chosen:
            raise ValueError(f"{config.model} is class-conditional: give --class-labels")
        names = {int(key): name for key, name in (pipe.config.id2label or {}).items()}
        chosen = [names.get(i, str(i)) for i in pipe.class_ids(list(config.class_labels))]
        facts = [{} for _ in chosen]
        if not chosen:
            known = ", ".join(names.values()) or "numbers"
            raise ValueError(f"there is nothing to draw: give --class-labels ({known})")
    elif config.class_labels:
        raise ValueError(f"{config.model} is text-conditional: give prompts, not classes")
    if not chosen:
        raise ValueError("there is no prompt; give one as an argument, or --prompts FILE")
    repeats = range(config.num_images)
    return [c for c in chosen for _ in repeats], [f for f in facts for _ in repeats]


def _check_clip(config: NarGenerateConfig, pipe: Any) -> None:
    """ValueError where a clip's length, size or format cannot be had of the model."""
    sizes = {name: getattr(config, name) for name in ("num_frames", "height", "width")}
    if isinstance(pipe, NARVideoPipeline):
        check_format(config.clip_format)
        pipe.check_size(**sizes)
        return
    high, wide = pipe.image_tokenizer.config.image_size
    own: dict[str, int] = {"height": high, "width": wide}
    for name, asked in sizes.items():
        if asked is not None and asked != own.get(name):
            known = f"{own['height']}x{own['width']} pixels"
            raise ValueError(f"{name} is {asked}; {config.model} draws single pictures of {known}")


def _save(
    config: NarGenerateConfig,
    folder: Path,
    first: int,
    conditions: list[str],
    drawn: Drawn,
    settings: dict[str, Any],
) -> None:
    for row, condition in enumerate(conditions):
        image = drawn.images[row]
        ending = config.clip_format if image.ndim == 4 else "png"
        name = f"images/{first + row:04d}.{ending}"
        scores = {key: score[row] for key, score in drawn.scores.items()}
        facts: dict[str, Any] = {
            "prompt": condition,
            "seed": drawn.seeds[row],
            "model": config.model,
            "lora": config.lora,
            **settings,
        }
        if image.ndim == 4:
            save_clip(folder / name, image, fps=config.fps, **facts)
        else:
            save_image(folder / name, image, **facts)
        record = {"image": name, "prompt": condition, "seed": drawn.seeds[row]}
        log_metrics(folder, index=first + row, **record, **scores)


def train_lora(config: NarAlignConfig) -> str | None:
    """What `align nar align` does; returns what to print."""
    from align.nar.training.align import align_nar

    return summary_by_one(align_nar(config).out)
