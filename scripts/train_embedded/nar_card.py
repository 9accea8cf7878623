"""The model card of `embedded/nar-scenes`."""

import argparse
from pathlib import Path

from align.files import write_atomic
from align.nar.pipeline import NARPipeline
from align.precision import fast_bfloat16

CARD = """---
license: cc0-1.0
library_name: diffusers
pipeline_tag: text-to-image
---

# nar-scenes

Draws 64x64 pictures of the `scenes` world from prompts, as {grid} tokens in {passes} forward
passes (neighboring-autoregressive decoding, arXiv 2503.10696).

| part | what | parameters |
| --- | --- | --- |
| `image_tokenizer` | convolutional, FSQ, {codes} codes | {image_tokenizer:,} |
| `text_encoder` | CLIP text model of {text_layers} layers, trained along | {text_encoder:,} |
| `transformer` | {layers} + {extra} blocks of width {width}, fusion {fusion} | {transformer:,} |

Trained for {step} steps of {batch} fresh renders, seed {seed}, seen combinations only, {precision};
the weights are an exponential moving average in float16:

    python scripts/train_embedded/nar_tokenizer.py
    python scripts/train_embedded/nar_scenes.py

Use: `align.nar.NARPipeline.from_pretrained("embedded/nar-scenes")("a red circle")`. Prompts
outside the scenes grammar are outside what it was trained on. It was trained on synthetic
pictures drawn by this package's renderer, so it holds no third-party data. How often its pictures
are right stands in docs/benchmarks.md (`scripts/bench/nar_scenes.py`).
"""


def count(module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def write_card(out: Path, pipe: NARPipeline, args: argparse.Namespace, step: int) -> None:
    """Write README.md into the model's folder."""
    transformer = pipe.transformer
    text = CARD.format(
        grid="x".join(str(side) for side in transformer.grid_shape),
        passes=transformer.order.num_passes,
        codes=pipe.image_tokenizer.codebook_size,
        image_tokenizer=count(pipe.image_tokenizer),
        text_layers=pipe.text_encoder.config.num_hidden_layers,
        text_encoder=count(pipe.text_encoder),
        layers=args.layers,
        extra=len(transformer.blocks) - args.layers,
        width=args.width,
        fusion=args.fusion,
        transformer=count(transformer),
        step=step,
        precision="bfloat16 autocast" if fast_bfloat16(args.device) else "float32",
        batch=args.batch_size,
        seed=args.seed,
    )
    write_atomic(out / "README.md", text)
