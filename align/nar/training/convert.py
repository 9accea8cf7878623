"""`align nar convert`: a raster autoregressive model becomes NAR by the FlashAR recipe.

FlashAR (arXiv 2605.09430): a vertical branch beside the last layers, cloned from them with the
norm and output of the teacher's head; a gate that starts as the plain mean; then fine-tuning in two
stages, first of what is new with the trunk frozen, then of all with a slower trunk, on the
cross-entropy of the mixture and a little of each head's own. Departure from its released code: the
gate reads hidden states, as this package's models do, not detached logits.
"""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from align.config.nar import NarConvertConfig, parse_grid
from align.nar.llamagen import load_llamagen_tokenizer
from align.nar.load import load_nar_pipeline
from align.nar.model import NARTransformer2DModel
from align.nar.pipeline import NARPipeline
from align.nar.reference import load_reference
from align.nar.scheduler import NARScheduler
from align.nar.training.cache import cached_tokens, digest_of_pictures, digest_of_weights
from align.nar.training.data import Picture, find_pictures
from align.nar.training.fit import make_run, open_processes, train_on_pictures
from align.nar.training.train import Conditions, Trained, decay_groups, draw_samples, make_loss
from align.runs.folder import check_folder, open_run
from align.training.runs import Run, open_folder
from align.training.seeding import seeded


def convert_raster(raster: NARTransformer2DModel, branch_depth: int = 1) -> NARTransformer2DModel:
    """A NAR model with the raster model's weights; nothing is trained yet.

    The branch of `branch_depth` = 1 runs beside the last block and is its clone, so both heads say
    what the teacher's would, from the left and from the upper neighbour.

    Raises ValueError where the model is no raster one of pictures, or the branch does not fit.
    """
    config = raster.config
    if config.decoding != "raster" or len(raster.grid_shape) != 2:
        kind = "clips" if len(raster.grid_shape) == 3 else f"decoding {config.decoding!r}"
        raise ValueError(f"only a raster model of pictures can be converted, not one of {kind}")
    if not 1 <= branch_depth <= config.num_layers:
        raise ValueError(
            f"branch_depth is {branch_depth}; the trunk's depth allows 1 to {config.num_layers}"
        )
    changes = {"decoding": "wavefront", "fusion": "gate", "branch_depth": branch_depth}
    settings = {k: v for k, v in config.items() if not k.startswith("_")} | changes
    model = NARTransformer2DModel(**settings)
    weights = {key: value.clone() for key, value in raster.state_dict().items()}
    # the branch is one block, whatever its depth: that of the layer it starts beside
    source = config.num_layers - branch_depth
    for key in list(weights):
        if key.startswith(f"blocks.{source}."):
            new = key.replace(f"blocks.{source}.", f"blocks.{config.num_layers}.")
            weights[new] = weights[key].clone()
        for part in ("head_norms", "head_outputs"):
            if key.startswith(f"{part}.0."):
                weights[key.replace(f"{part}.0.", f"{part}.1.")] = weights[key].clone()
    gate = {k: v for k, v in model.state_dict().items() if k.startswith("gate.")}
    model.load_state_dict(weights | gate)
    return model.eval()


def is_new(name: str, num_layers: int) -> bool:
    """Whether a parameter is of the branch, its head or the gate."""
    starts = (f"blocks.{num_layers}.", "head_norms.1.", "head_outputs.1.", "gate.")
    return name.removeprefix("transformer.").startswith(starts)


def convert_nar(config: NarConvertConfig) -> Path:
    """Convert, fine-tune and save; returns the pipeline's folder.

    Raises:
        ValueError, FileNotFoundError: a model, data or settings that do not fit.
        Diverged: the loss or the gradient is not finite.
        KeyboardInterrupt: after saving.
    """
    check_folder(config.out, config.overwrite, config.resume)
    pipe = load_raster(config)
    with seeded(config.seed):  # the gate's first layer
        transformer = convert_raster(pipe.transformer, config.branch_depth)
    if not config.steps:
        folder = open_run(config.out, config, config.overwrite, command="nar convert")
        with_transformer(pipe, transformer).save_pretrained(folder / "pipeline")
        return folder / "pipeline"
    pictures = find_pictures(config.data)
    conditions = conditions_of(pipe, pictures)
    accelerator = open_processes(config)
    if accelerator.num_processes > 1:
        raise ValueError(
            f"convert was started with {accelerator.num_processes} processes; it freezes and "
            "thaws the trunk, which one process can do alone"
        )
    folder = open_folder(config, accelerator, "nar convert")
    pipe.image_tokenizer.to(accelerator.device)
    tokens = cached_tokens(folder, pictures, pipe.image_tokenizer, config.flip, accelerator)
    trained = Trained(transformer, None if conditions.frozen else conditions.encoder)
    contents = {
        "data": digest_of_pictures(pictures),
        "tokenizer": digest_of_weights(pipe.image_tokenizer),
    }
    groups = make_groups(config, trained)
    run = make_run(config, folder, accelerator, trained, groups, contents, warmup=0)
    set_stage(config, run)
    train_on_pictures(
        run,
        make_loss(config, tokens, conditions, transformer),
        len(pictures),
        micro_batch_size=config.micro_batch_size,
        on_step=lambda record: set_stage(config, run),
    )
    trained.requires_grad_(True)
    draw_samples(run, conditions, pipe.image_tokenizer).save_pretrained(folder / "pipeline")
    return folder / "pipeline"


def make_groups(config: NarConvertConfig, trained: Trained) -> list[dict]:
    """Parameter groups: what is new, and the trunk at its own learning rate."""
    layers = trained.transformer.config.num_layers
    groups = []
    for scale, wanted in ((1.0, True), (config.trunk_scale, False)):
        part = nn.ParameterList(
            p for name, p in trained.named_parameters() if is_new(name, layers) == wanted
        )
        rate = scale * config.learning_rate
        groups += [g | {"lr": rate} for g in decay_groups(part, config.weight_decay)]
    return groups


def set_stage(config: NarConvertConfig, run: Run) -> None:
    """Freeze the trunk in the first share of the updates, thaw it after."""
    frozen = run.done < config.frozen_share * config.steps
    trained: Any = run.plain
    for name, parameter in trained.named_parameters():
        parameter.requires_grad_(is_new(name, trained.transformer.config.num_layers) or not frozen)


def load_raster(config: NarConvertConfig) -> NARPipeline:
    """The raster pipeline to convert. Raises ValueError, FileNotFoundError for what is none."""
    if not config.model:
        raise ValueError("there is no model: give --model a raster pipeline or checkpoint")
    path = Path(config.model).expanduser()
    if not path.is_file():
        pipe = load_nar_pipeline(config.model, "cpu", "float32")
        if not isinstance(pipe, NARPipeline):
            raise ValueError(f"{config.model} draws no pictures; only a raster model of them fits")
        return pipe
    if config.num_heads is None or config.grid is None or config.tokenizer is None:
        raise ValueError(
            f"{path.name} is a checkpoint: give --num-heads, --grid (16x16) and --tokenizer (its "
            "VQ file) with it"
        )
    grid = parse_grid(config.grid)
    model = load_reference(path, num_heads=config.num_heads, grid_shape=grid, decoding="raster")
    size = (16 * grid[0], 16 * grid[1])
    tokenizer = load_llamagen_tokenizer(config.tokenizer, image_size=size)
    return NARPipeline(model, tokenizer, NARScheduler(guidance_scale=2.0))


def with_transformer(pipe: NARPipeline, transformer: NARTransformer2DModel) -> NARPipeline:
    """The same pipeline around another transformer."""
    parts: dict[str, Any] = {**pipe.components, "transformer": transformer}
    return NARPipeline(**parts, id2label=labels(pipe))


def labels(pipe: NARPipeline) -> dict[int, str] | None:
    """Names of the classes by number."""
    named = pipe.config.id2label or {}
    return {int(key): name for key, name in named.items()} or None


def conditions_of(pipe: NARPipeline, pictures: list[Picture]) -> Conditions:
    """What the pictures are conditioned on, in the words or classes that the model knows."""
    if pipe.transformer.config.condition == "text":
        without = [picture.name for picture in pictures if not picture.caption]
        if without:
            raise ValueError(f"{len(without)} pictures have no caption, the first is {without[0]}")
        frozen = bool(pipe.transformer.config.use_condition_mask)
        captions = tuple(picture.caption or "" for picture in pictures)
        return Conditions(
            captions=captions, words=pipe.tokenizer, encoder=pipe.text_encoder, frozen=frozen
        )
    names = labels(pipe) or {i: str(i) for i in range(pipe.transformer.config.num_classes)}
    numbers = {name: number for number, name in names.items()}
    for picture in pictures:
        if picture.label not in numbers:
            known = ", ".join(list(numbers)[:10])
            raise ValueError(f"{picture.name} is of class {picture.label!r}; known: {known}")
    found = torch.tensor([numbers[picture.label or ""] for picture in pictures])
    return Conditions(labels=found, names=tuple(names[i] for i in sorted(names)))
