"""`align nar train`: a class- or text-conditional NAR model on pictures of one's own."""

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Int
from torch import Tensor, nn

from align.config.nar import NarConvertConfig, NarTrainConfig, parse_grid
from align.nar.llamagen import LlamaGenTokenizer
from align.nar.model import NARTransformer2DModel
from align.nar.pipeline import NARPipeline
from align.nar.scheduler import NARScheduler
from align.nar.text import encode_texts, frozen_encoder, learn_words, small_encoder
from align.nar.tokenizer import ImageTokenizer
from align.nar.training.cache import cached_tokens, digest_of_pictures, digest_of_weights
from align.nar.training.data import Picture, find_pictures
from align.nar.training.fit import make_run, open_processes, train_on_pictures
from align.runs.folder import check_folder, image_grid, save_image
from align.training.runs import Run, open_folder
from align.training.seeding import seeded

log = logging.getLogger(__name__)


@dataclass
class Conditions:
    """What the pictures are conditioned on: labels, or captions with their text encoder."""

    labels: Int[Tensor, " n"] | None = None
    names: tuple[str, ...] = ()
    captions: tuple[str, ...] = ()
    words: Any = None
    encoder: Any = None
    frozen: bool = False

    @property
    def examples(self) -> list[str]:
        """Up to four conditions to draw samples of."""
        return list(dict.fromkeys(self.captions or self.names))[:4]


class Trained(nn.Module):
    """The transformer and, where it is trained along, the text encoder."""

    def __init__(self, transformer: NARTransformer2DModel, text_encoder: nn.Module | None):
        super().__init__()
        self.transformer = transformer
        self.text_encoder = text_encoder

    def forward(
        self, ids: Tensor, condition: Tensor, mask: Tensor | None, drop: Tensor, heads: bool
    ) -> Any:
        if self.text_encoder is not None:
            condition = self.text_encoder(condition).last_hidden_state
        return self.transformer(ids, condition, mask, drop, return_heads=heads)


def train_nar(config: NarTrainConfig) -> Path:
    """Train by one cross-entropy on the mixed logits; returns the pipeline's folder.

    Raises:
        ValueError, FileNotFoundError: data, tokenizer or settings that do not fit.
        Diverged: the loss or the gradient is not finite.
        KeyboardInterrupt: after saving.
    """
    check_folder(config.out, config.overwrite, config.resume)
    pictures = find_pictures(config.data)
    image_tokenizer = load_image_tokenizer(config.tokenizer)
    if config.grid is not None and parse_grid(config.grid) != image_tokenizer.grid_shape:
        grid = "x".join(str(side) for side in image_tokenizer.grid_shape)
        raise ValueError(f"grid is {config.grid}, but the tokenizer makes {grid} tokens")
    accelerator = open_processes(config)
    with seeded(config.seed):
        conditions = make_conditions(config, pictures)
        transformer = make_transformer(config, image_tokenizer, conditions)
    contents = {
        "data": digest_of_pictures(pictures),
        "tokenizer": digest_of_weights(image_tokenizer),
    }
    folder = open_folder(config, accelerator, "nar train")
    image_tokenizer.to(accelerator.device)
    tokens = cached_tokens(folder, pictures, image_tokenizer, config.flip, accelerator)
    trained = Trained(transformer, None if conditions.frozen else conditions.encoder)
    groups = decay_groups(trained, config.weight_decay)
    run = make_run(
        config,
        folder,
        accelerator,
        trained,
        groups,
        contents,
        schedule=config.lr_schedule,
        warmup=config.warmup_steps,
        max_grad_norm=config.max_grad_norm,
    )
    if config.compile:
        transformer.compile_repeated_blocks()

    def on_step(record: dict[str, Any]) -> None:
        if config.sample_every and run.done % config.sample_every == 0:
            draw_samples(run, conditions, image_tokenizer)

    train_on_pictures(
        run,
        make_loss(config, tokens, conditions, transformer),
        len(pictures),
        micro_batch_size=config.micro_batch_size,
        on_step=on_step,
    )
    if accelerator.is_main_process:
        draw_samples(run, conditions, image_tokenizer).save_pretrained(folder / "pipeline")
    return folder / "pipeline"


def make_loss(
    config: NarTrainConfig | NarConvertConfig,
    tokens: Int[Tensor, "views n t"],
    conditions: Conditions,
    transformer: NARTransformer2DModel,
) -> Any:
    """The loss of pictures by index; random choices follow the global generator."""

    def loss_fn(model: nn.Module, update: int, indices: list[int]) -> tuple[Tensor, dict]:
        device = next(model.parameters()).device
        rows = torch.tensor(indices)
        view = torch.randint(len(tokens), (len(rows),))
        ids = tokens[view, rows].long().to(device)
        length = transformer.num_condition_tokens
        condition, mask = batch_condition(conditions, rows, length, device)
        drop = (torch.rand(len(rows)) < config.condition_dropout).to(device)
        heads = config.head_loss > 0
        out = model(ids, condition, mask, drop, heads)
        logits, own = out if heads else (out, [])
        loss = F.cross_entropy(logits.flatten(0, 1).float(), ids.flatten())
        logged = {"cross_entropy": float(loss.detach())}
        for number, head in enumerate(own):
            inverse = transformer.tables(device)["inverse"]
            there = transformer.tables(device)["available"][number][inverse]
            alone = F.cross_entropy(head[:, there].flatten(0, 1).float(), ids[:, there].flatten())
            logged[f"head_{number}"] = float(alone.detach())
            loss = loss + config.head_loss * alone
        return loss, logged

    return loss_fn


def batch_condition(
    conditions: Conditions, rows: Tensor, length: int, device: torch.device
) -> tuple[Tensor, Tensor | None]:
    """Labels, token ids of captions, or features of a frozen encoder with their mask."""
    if conditions.labels is not None:
        return conditions.labels[rows].to(device), None
    texts = [conditions.captions[row] for row in rows.tolist()]
    if conditions.frozen:
        conditions.encoder.to(device)
        with torch.no_grad():
            return encode_texts(conditions.words, conditions.encoder, texts, length, masked=True)
    encoded = conditions.words(
        texts,
        padding="max_length",
        max_length=length,
        truncation=True,
        return_tensors="pt",
    )
    return encoded.input_ids.to(device), None


def load_image_tokenizer(path: str) -> Any:
    """The image tokenizer of a folder, of a tokenizer run or of a pipeline."""
    if not path:
        raise ValueError("there is no tokenizer: train one with `align nar tokenizer`")
    root = Path(path).expanduser()
    for folder in (root / "tokenizer", root / "image_tokenizer", root):
        config = folder / "config.json"
        name = (
            json.loads(config.read_text(encoding="utf-8")).get("_class_name")
            if (config.is_file())
            else None
        )
        for kind in (ImageTokenizer, LlamaGenTokenizer):
            if name == kind.__name__:
                return kind.from_pretrained(folder, dtype=torch.float32).eval()
    raise FileNotFoundError(f"there is no image tokenizer in {path}")


def make_conditions(config: NarTrainConfig, pictures: list[Picture]) -> Conditions:
    """Labels or captions, as the config or the data say."""
    without = [picture.name for picture in pictures if not picture.caption]
    kind = config.condition
    if kind == "auto":
        kind = "class" if without else "text"
    if kind == "text":
        if without:
            raise ValueError(f"{len(without)} pictures have no caption, the first is {without[0]}")
        captions = tuple(picture.caption or "" for picture in pictures)
        if config.text_encoder is not None:
            words, encoder = frozen_encoder(config.text_encoder)
            return Conditions(captions=captions, words=words, encoder=encoder, frozen=True)
        words = learn_words(list(captions), config.text_tokens)
        encoder = small_encoder(words, config.width, config.text_tokens)
        return Conditions(captions=captions, words=words, encoder=encoder)
    names = tuple(sorted({picture.label or "pictures" for picture in pictures}))
    numbers = {name: number for number, name in enumerate(names)}
    labels = torch.tensor([numbers[picture.label or "pictures"] for picture in pictures])
    return Conditions(labels=labels, names=names)


def make_transformer(
    config: NarTrainConfig, image_tokenizer: Any, conditions: Conditions
) -> NARTransformer2DModel:
    """The network that a config describes, for a tokenizer's grid and codes."""
    text: dict[str, Any] = {}
    if conditions.labels is None:
        text = {
            "condition": "text",
            "condition_width": conditions.encoder.config.hidden_size,
            "num_condition_tokens": config.text_tokens,
            "use_condition_mask": conditions.frozen,
            "null_mask": "full",
        }
    transformer = NARTransformer2DModel(
        grid_shape=image_tokenizer.grid_shape,
        vocab_size=image_tokenizer.codebook_size,
        width=config.width,
        num_layers=config.num_layers,
        num_heads=config.num_heads,
        num_classes=max(len(conditions.names), 1),
        branch_depth=config.branch_depth,
        fusion=config.fusion,
        decoding=config.decoding,
        cond_rope=config.cond_rope,
        dropout=config.dropout,
        **text,
    )
    if config.checkpointing:
        transformer.enable_gradient_checkpointing()
    return transformer


def decay_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """Weight decay on tensors of two or more dimensions, as published."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]


def make_pipeline(run: Run, conditions: Conditions, image_tokenizer: Any) -> NARPipeline:
    """The weights to use, as a pipeline."""
    result = run.result()
    return NARPipeline(
        result.transformer,
        image_tokenizer,
        NARScheduler(guidance_scale=2.0),
        conditions.words,
        conditions.encoder if conditions.frozen else result.text_encoder,
        dict(enumerate(conditions.names)) or None,
    )


@torch.no_grad()
def draw_samples(run: Run, conditions: Conditions, image_tokenizer: Any) -> NARPipeline:
    """Write a sheet of samples, four of each example, and return the pipeline that drew them."""
    pipe = make_pipeline(run, conditions, image_tokenizer)
    pipe.set_progress_bar_config(disable=True)
    examples = conditions.examples
    named: dict[str, Any] = (
        {"prompt": examples} if conditions.labels is None else {"class_labels": examples}
    )
    generators = [torch.Generator().manual_seed(seed) for seed in range(4 * len(examples))]
    settings: dict[str, Any] = {"num_images_per_prompt": 4, "output_type": "pt"}
    images: Any = pipe(**named, **settings, generator=generators, return_dict=False)[0]
    save_image(
        run.folder / f"images/samples-{run.done:06d}.png",
        image_grid(images.cpu(), columns=4),
        prompt="\n".join(examples),
        model=str(run.folder),
    )
    return pipe
