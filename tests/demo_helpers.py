"""What the tests of the demo share: a NAR model, and a server's page outside of a browser."""

from pathlib import Path

import torch

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
