"""`load_nar_pipeline`: a NAR pipeline from a name, a folder, a training run or the Hub."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from align.models.load import EMBEDDED, _loading_bars, torch_device, torch_dtype
from align.nar.pipeline import NARPipeline
from align.nar.video_pipeline import NARVideoPipeline

KINDS = {kind.__name__: kind for kind in (NARPipeline, NARVideoPipeline)}


def load_nar_pipeline(
    model: str,
    device: str | torch.device | None = None,
    dtype: str | None = None,
    lora: str | Sequence[str] = (),
) -> Any:
    """A `NARPipeline` or `NARVideoPipeline`, ready to draw, with LoRAs added to its weights.

    Args:
        model: embedded/NAME, a pipeline's folder, a run of `align nar train`, or a Hub id.
        device: default the best one present.
        dtype: default float32 on a CPU, else bfloat16.
        lora: files, folders, runs or Hub ids, each with an optional =WEIGHT.

    Raises FileNotFoundError or ValueError for what is no NAR model, or no LoRA of this one.
    """
    target = torch_device(device)
    precision = torch_dtype(dtype)
    if precision is None:
        precision = torch.float32 if target.type == "cpu" else torch.bfloat16
    source, kind = find_nar_model(model)
    with _loading_bars(shown=isinstance(source, str)):
        pipe = kind.from_pretrained(str(source), dtype=precision).to(target)
    pipe.set_progress_bar_config(disable=True)
    for part in pipe.components.values():
        if isinstance(part, torch.nn.Module):
            part.eval().requires_grad_(False)
    if lora:
        pipe.load_lora(lora)
    return pipe


def find_nar_model(model: str) -> tuple[Path | str, Any]:
    """(folder or Hub id, pipeline class) of what `--model` names.

    Raises FileNotFoundError where there is nothing, ValueError where it is no NAR pipeline.
    """
    folder = Path(model).expanduser()
    if model.startswith("embedded/"):
        folder = EMBEDDED / model.removeprefix("embedded/")
    if (folder / "pipeline").is_dir():
        folder = folder / "pipeline"
    if not folder.is_dir():
        if model.count("/") != 1 or model.startswith((".", "/", "~", "embedded/")):
            raise FileNotFoundError(
                f"there is no model {model!r}: embedded/NAME, a folder or a Hub id"
            )
        return model, NARPipeline
    index = folder / "model_index.json"
    name = json.loads(index.read_text(encoding="utf-8"))["_class_name"] if index.is_file() else None
    if name not in KINDS:
        found = f"is a {name}" if name else "has no model_index.json"
        raise ValueError(f"{folder} is no NAR pipeline: it {found}")
    return folder, KINDS[name]
