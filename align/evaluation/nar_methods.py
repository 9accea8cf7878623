"""NAR pictures in evaluations: which model a method names, drawing, and what it costs."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from align.evaluation.spending import spending
from align.models.lora_files import parse_lora
from align.rewards.provenance import run_of
from align.rewards.reward import Reward

DEFAULT = "embedded/nar-scenes"


def nar_source(value: str) -> tuple[str, tuple[str, ...]]:
    """(model, LoRAs) that `nar=VALUE` names: a model, or the LoRA of an `align nar align` run.

    A run knows which model it was trained from; any other LoRA goes on the embedded model.
    """
    folder = Path(parse_lora(value)[0]).expanduser()
    model = (folder / "model_index.json").is_file() or (folder / "pipeline").is_dir()
    if not value:
        return DEFAULT, ()
    if model or not folder.exists():  # embedded/NAME, a Hub id, or a folder that is not there
        return value, ()
    run = run_of(value)
    return run["config"]["model"] if run.get("command") == "nar align" else DEFAULT, (value,)


@torch.no_grad()
def draw_nar(pipe: Any, prompt: str, seeds: Sequence[int]) -> Float[Tensor, "b 3 h w"]:
    """Pictures by the pipeline's own settings, each from the generator of its seed."""
    output = pipe(
        [prompt] * len(seeds),
        generator=[torch.Generator().manual_seed(seed) for seed in seeds],
        output_type="pt",
    )
    return output.images.float()


def nar_spending(pipe: Any, reward: Reward | None) -> Any:
    """`spending` on a NARPipeline: a pass of one picture, null half apart, is a forward.

    The first block is called once a pass, where the model's `forward` is not.
    """
    return spending(pipe.transformer.blocks[0], pipe.image_tokenizer.decoder, reward)


def nar_passes(pipe: Any) -> int:
    """Passes of the transformer a picture; a guided one is one, as a guided step is."""
    return pipe.transformer.order.num_passes
