"""What the tests of the demo share: a NAR model, and reading what a handler yields."""

import base64
import io
import re
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import align
from align.nar import (
    ImageTokenizer,
    NARPipeline,
    NARScheduler,
    NARTransformer2DModel,
    NARTransformer3DModel,
)
from align.nar.text import learn_words, small_encoder
from align.nar.video_pipeline import NARVideoPipeline
from align.nar.video_tokenizer import VideoTokenizer

SHIPPED_NAR = Path(align.__file__).parent / "embedded" / "nar-scenes"


def nar_model(folder):
    """The shipped NAR model's name, or a tiny random one on disk where none is shipped."""
    if (SHIPPED_NAR / "model_index.json").is_file():
        return "embedded/nar-scenes"
    if not folder.exists():
        tiny_nar().save_pretrained(folder)
    return str(folder)


def tiny_nar():
    """A tiny random NAR pipeline that takes any text and draws 12 x 16 pixels."""
    torch.manual_seed(0)
    words = learn_words(["a red circle", "two blue squares"], 8)
    transformer = NARTransformer2DModel(
        grid_shape=(3, 4), vocab_size=15, width=16, num_layers=1, num_heads=2, ffn_width=16,
        condition="text", condition_width=16, num_condition_tokens=8,
    ).eval()  # fmt: skip
    for parameter in transformer.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    tokenizer = ImageTokenizer(image_size=(12, 16), widths=(8, 8, 8), blocks=1, levels=(5, 3))
    return NARPipeline(
        transformer, tokenizer.eval(), NARScheduler(), words, small_encoder(words, 16, 8).eval()
    )


def tiny_video_nar():
    """A tiny random NAR pipeline that takes any text and draws clips of 4 frames of 8 x 8."""
    torch.manual_seed(0)
    words = learn_words(["a red circle moving right"], 8)
    transformer = NARTransformer3DModel(
        grid_shape=(2, 2, 2), vocab_size=15, width=16, num_layers=1, num_heads=2, ffn_width=16,
        condition="text", condition_width=16, num_condition_tokens=8,
    ).eval()  # fmt: skip
    for parameter in transformer.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    tokenizer = VideoTokenizer(
        num_frames=4, image_size=(8, 8), widths=(8, 8, 8), blocks=1, levels=(5, 3)
    )
    encoder = small_encoder(words, 16, 8).eval()
    return NARVideoPipeline(transformer, tokenizer.eval(), NARScheduler(), words, encoder)


def skipped(value):
    """Whether an update leaves its part of the page as it is."""
    return isinstance(value, dict) and value.get("__type__") == "update" and len(value) == 1


def opened(path):
    """(picture, what its PNG says), the file closed."""
    with Image.open(path) as image:
        return image.copy(), dict(image.info)


def alike(picture, image):
    """Whether they differ by a rounding at most: the search draws four at a time."""
    difference = torch.from_numpy(np.array(picture)).permute(2, 0, 1) / 255 - image
    return float(difference.abs().max()) < 1.01 / 255


def text_of(update):
    return "" if skipped(update) else re.sub("<[^>]+>", "", update)


def data_url(image, kind="PNG", **settings):
    buffer = io.BytesIO()
    image.save(buffer, kind, **settings)
    return f"data:image/{kind.lower()};base64," + base64.b64encode(buffer.getvalue()).decode()
