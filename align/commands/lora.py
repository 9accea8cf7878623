"""What `align lora mix`, `lora export` and `lora merge` do."""

from pathlib import Path
from typing import Any

from align.config.commands import LoraFilesConfig
from align.models.load import load_pipeline
from align.models.lora import export_lora, merge_lora
from align.models.lora_files import find_lora, mix, parse_lora
from align.rewards.provenance import run_of
from align.runs.files import clear_disk_errors
from align.runs.folder import check_folder, open_run

HALF_WRITTEN = ".part"


def mix_loras(config: LoraFilesConfig) -> Path:
    """Write the weighted sum of LoRAs, in diffusers' layout, and return the folder.

    Without a model, files must be in diffusers' layout already.
    """
    _need(config, "lora mix", minimum=2)
    pipe = load_pipeline(config.model) if config.model else None
    folder = open_run(config.out, config, config.overwrite, command="lora-mix")
    if pipe is None:
        mix(config.source, folder)
    else:
        export_lora(pipe, list(config.source), folder, "diffusers")
    return folder


def export_one(config: LoraFilesConfig) -> Path:
    """Write LoRAs (the weighted sum of several) in another layout; returns the file or folder."""
    _need(config, "lora export")
    pipe = load_pipeline(model_of(config))
    folder = open_run(config.out, config, config.overwrite, command="lora-export")
    target = folder if config.format == "diffusers" else folder / "lora.safetensors"
    return export_lora(pipe, list(config.source), target, config.format)


def merge_into_model(config: LoraFilesConfig) -> Path:
    """Write a full pipeline folder with the LoRAs added to its weights; returns the folder."""
    _need(config, "lora merge")
    pipe: Any = load_pipeline(model_of(config), lora=config.source)
    merge_lora(pipe)
    folder = open_run(config.out, config, config.overwrite, command="lora-merge")
    unfinished = folder / HALF_WRITTEN
    with clear_disk_errors(folder):
        pipe.save_pretrained(unfinished)
        for item in sorted(unfinished.iterdir(), key=lambda path: path.name == "model_index.json"):
            item.replace(folder / item.name)  # the index comes last: until then it is no pipeline
        unfinished.rmdir()
    return folder


def _need(config: LoraFilesConfig, command: str, minimum: int = 1) -> None:
    if len(config.source) < minimum:
        raise ValueError(
            f"`align {command}` got {len(config.source)} LoRAs; name at least {minimum}, "
            "each a file, folder, run or Hub id, optionally =WEIGHT"
        )
    check_folder(config.out, config.overwrite)


def model_of(config: LoraFilesConfig) -> str:
    """The model named, else that of the run which trained the first LoRA."""
    if config.model:
        return config.model
    path = find_lora(parse_lora(config.source[0])[0])
    if model := run_of(str(path)).get("config", {}).get("model"):
        return model
    raise ValueError(f"--model is needed: no run.json beside {path} says which model it is for")
