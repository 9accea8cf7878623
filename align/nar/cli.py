"""The commands `align nar …`: nothing heavy is imported before one runs."""

from align.arguments import parse
from align.nar.config import (
    NarAlignConfig,
    NarConvertConfig,
    NarGenerateConfig,
    NarTokenizerConfig,
    NarTrainConfig,
)


def nar_generate(args: list[str]) -> None:
    """pictures by neighboring-autoregressive decoding"""
    config = parse(NarGenerateConfig, args, "nar generate")
    from align.nar.commands import generate_nar

    print(generate_nar(config))


def nar_train(args: list[str]) -> None:
    """a neighboring-autoregressive model of one's own pictures"""
    config = parse(NarTrainConfig, args, "nar train")
    from align.nar.train import train_nar

    print(train_nar(config))


def nar_tokenizer(args: list[str]) -> None:
    """an image tokenizer of one's own pictures"""
    config = parse(NarTokenizerConfig, args, "nar tokenizer")
    from align.nar.train_tokenizer import train_tokenizer

    print(train_tokenizer(config))


def nar_align(args: list[str]) -> None:
    """raise a reward on a NAR model: GRPO or DPO with a LoRA"""
    config = parse(NarAlignConfig, args, "nar align")
    from align.nar.alignment import align_nar
    from align.processes import is_first
    from align.training.report import summary

    folder = align_nar(config).out
    if is_first():  # one of several processes speaks
        print(summary(folder))


def nar_convert(args: list[str]) -> None:
    """a raster autoregressive model made into NAR"""
    config = parse(NarConvertConfig, args, "nar convert")
    from align.nar.convert import convert_nar

    print(convert_nar(config))
