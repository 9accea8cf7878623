"""The model card of `embedded/nar-scenes-video`."""

import argparse
from pathlib import Path

from nar_card import count

from align.nar.video_pipeline import NARVideoPipeline
from align.runs.files import write_atomic

CARD = """---
license: cc0-1.0
library_name: diffusers
pipeline_tag: text-to-video
---

# nar-scenes-video

Draws clips of {frames} frames of {height}x{width} pixels of one moving object from prompts such as
"a red circle moving right", as {grid} tokens in {passes} forward passes (neighboring-autoregressive
decoding over time, rows and columns, arXiv 2503.10696).

| part | what | parameters |
| --- | --- | --- |
| `video_tokenizer` | {pair} frames by 4x4 pixels a token, {codes} codes | {video_tokenizer:,} |
| `text_encoder` | CLIP text model of {text_layers} layers, trained along | {text_encoder:,} |
| `transformer` | {layers} + {extra} blocks of width {width_}, fusion {fusion} | {transformer:,} |

Trained for {step} steps of {batch} fresh clips a process, seed {seed}, seen objects only; the
weights are an exponential moving average in float16:

    python scripts/train_embedded/nar_video_tokenizer.py
    python scripts/train_embedded/nar_video.py

Use: `align.nar.NARVideoPipeline.from_pretrained("embedded/nar-scenes-video")("a red circle moving
right")`. Prompts outside that grammar (`align.scenes.motion`) are outside what it was trained on.
It was trained on synthetic clips drawn by this package's renderer, so it holds no third-party data.
"""


def write_card(out: Path, pipe: NARVideoPipeline, args: argparse.Namespace, step: int) -> None:
    """Write README.md into the model's folder."""
    transformer, clip = pipe.transformer, pipe.video_tokenizer.config
    text = CARD.format(
        frames=clip.num_frames,
        height=clip.image_size[0],
        width=clip.image_size[1],
        pair=clip.time_patch,
        grid="x".join(str(side) for side in transformer.grid_shape),
        passes=transformer.order.num_passes,
        codes=pipe.video_tokenizer.codebook_size,
        video_tokenizer=count(pipe.video_tokenizer),
        text_layers=pipe.text_encoder.config.num_hidden_layers,
        text_encoder=count(pipe.text_encoder),
        layers=args.layers,
        extra=len(transformer.blocks) - args.layers,
        width_=args.width,
        fusion=args.fusion,
        transformer=count(transformer),
        step=step,
        batch=args.batch_size,
        seed=args.seed,
    )
    write_atomic(out / "README.md", text)
