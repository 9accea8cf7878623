"""A tiny NAR pipeline and runs of seconds, for the tests of `align nar align`."""

import torch

from align.config.nar import NarAlignConfig
from align.models.lora import trained_parameters
from align.nar import ImageTokenizer, NARPipeline, NARScheduler, NARTransformer2DModel
from align.nar.text import learn_words, small_encoder
from align.nar.training.align import align_nar

PROMPTS = ["a red circle", "two blue squares", "a star"]
SMALL = {
    "model": "tiny", "steps": 3, "batch_size": 8, "group_size": 4, "micro_batch_size": 4,
    "lora_rank": 2, "tracker": "none", "sample_every": 0, "checkpoint_every": 0, "device": "cpu",
    "mixed_precision": "no",
}  # fmt: skip


def tiny_pipe(text: bool = True, image_size=(8, 12), **changes) -> NARPipeline:
    """6 tokens of 9 codes; text-conditional, or of the classes cat and dog."""
    settings = {
        "grid_shape": (2, 3), "vocab_size": 9, "width": 16, "num_layers": 1, "num_heads": 2,
        "ffn_width": 16, "num_classes": 2, "dropout": 0.2,
    }  # fmt: skip
    words, encoder, labels = None, None, {0: "cat", 1: "dog"}
    torch.manual_seed(0)
    if text:
        words, labels = learn_words(PROMPTS, 6), None
        encoder = small_encoder(words, 16, 6).eval()
        settings |= {"condition": "text", "condition_width": 16, "num_condition_tokens": 6}
    model = NARTransformer2DModel(**settings | changes).eval()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    patch = image_size[0] // model.grid_shape[0]
    widths = (8,) * patch.bit_length()  # each after the first halves the picture
    tokenizer = ImageTokenizer(image_size=image_size, widths=widths, blocks=1, levels=(3, 3))
    for parameter in tokenizer.decoder.parameters():  # so that pictures depend on their codes
        torch.nn.init.normal_(parameter, std=0.5)
    pipe = NARPipeline(model, tokenizer.eval(), NARScheduler(), words, encoder, labels)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def brightness(images, prompts):
    """Needs no gradient: quantized, and different for every prompt."""
    length = torch.tensor([1.0 + len(prompt) % 3 for prompt in prompts])
    return (images.flatten(1).mean(1) * 1000 * length).round()


def small_config(folder, prompts=PROMPTS, **changes) -> NarAlignConfig:
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "prompts.txt"
    file.write_text("\n".join(prompts))
    return NarAlignConfig(
        **SMALL | {"prompts": str(file), "out": str(folder / "run")} | changes  # pyright: ignore
    )


def run(folder, *, pipe=None, reward=brightness, on_step=None, **changes):
    """A run on a tiny pipeline: its result and the pipeline with the trained LoRA."""
    pipe = pipe or tiny_pipe()
    config = small_config(folder, **changes)
    return align_nar(config, reward=reward, pipe=pipe, on_step=on_step), pipe


def weights(pipe) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in trained_parameters(pipe).values()])


def randomize(pipe, scale: float = 0.3) -> None:
    """Move a LoRA off zero, so that all of it matters."""
    generator = torch.Generator().manual_seed(1)
    for parameter in trained_parameters(pipe).values():
        values = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
        parameter.data.copy_(scale * values)
