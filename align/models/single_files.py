"""Single-file checkpoints in their makers' layout, through diffusers' converters."""

import pickle
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from diffusers.loaders.single_file_utils import fetch_diffusers_config, load_single_file_checkpoint

from align.models.hub import model_index, parts_of, pipeline_class, reach, without_checker
from align.models.lora_files import pickled
from align.models.parts import only_variant
from align.runs.files import brief

SINGLE_FILES = (".safetensors", ".ckpt")
PREFIX = "model.diffusion_model."
# A tensor of the transformers that diffusers takes for others of their kind, and a config.
UNTOLD = {
    "FLUX.2": ("single_stream_modulation.lin.weight", "black-forest-labs/FLUX.2-klein-4B"),
    "Qwen-Image": ("transformer_blocks.0.img_mod.1.weight", "Qwen/Qwen-Image"),
}
# How the keys of each component begin, in a file that has it.
VAE_KEYS = ("first_stage_model.", "vae.")
T5_KEYS = ("text_encoders.t5xxl.",)
ENCODER_KEYS = {
    "text_encoder": ("cond_stage_model.", "conditioner.embedders.0.", "text_encoders.clip_l."),
    "text_encoder_2": ("conditioner.embedders.1.", "text_encoders.clip_g."),
}


def load_single_file(path: Path, config: str | None, dtype: torch.dtype) -> Any:
    """The pipeline of a single file; `config` is a diffusers folder or Hub id of its kind.

    Configs and tokenizers come from there, and what the file lacks: text encoders of SD3, text
    encoders and autoencoder of FLUX, all but the transformer of SANA. Without one, diffusers
    guesses a Hub id. Raises ValueError for a file that is no such checkpoint, FileNotFoundError
    where the config cannot be had.
    """
    with _lower_case(path) as lower:
        try:
            return _load(lower, config, dtype)
        except (FileNotFoundError, ValueError) as error:
            raise type(error)(str(error).replace(str(lower), str(path))) from error


def _load(path: Path, config: str | None, dtype: torch.dtype) -> Any:
    index, config = _index(path, config)
    kind, local = pipeline_class(config, index), Path(config).is_dir()
    settings = {"config": config, "dtype": dtype, "local_files_only": local}
    source = Path(config) if local else config
    if hasattr(kind, "from_single_file"):
        settings |= _absent_parts(path, source, index, dtype) | without_checker(kind)
        load = kind.from_single_file if local else partial(reach, source, kind.from_single_file)
        return _sound(path, load, str(path), **settings)
    part = getattr(diffusers, index.get("transformer", [None, ""])[1], None)
    if part is None or not hasattr(part, "from_single_file"):
        raise ValueError(f"diffusers reads no single files of a {kind.__name__}; give a folder")
    # ComfyUI's prefix, which diffusers' converters of some transformers leave where it is.
    tensors = {
        name.removeprefix(PREFIX): value
        for name, value in _sound(path, load_single_file_checkpoint, str(path)).items()
    }
    transformer = _sound(path, part.from_single_file, tensors, subfolder="transformer", **settings)
    return reach(source, kind.from_pretrained, source, transformer=transformer, dtype=dtype)


def _index(path: Path, config: str | None) -> tuple[dict[str, Any], str]:
    """The model_index.json for a single file, and the folder or Hub id it is from."""
    if config is not None:
        return model_index(config), config
    config = guessed_config(path)
    try:
        return model_index(config), config
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{path} has no configs and tokenizers; those of {config} on the Hub cannot be had "
            f"here, so name a diffusers folder of this kind of model, as {path}@FOLDER"
        ) from error


def guessed_config(path: Path) -> str:
    """The Hub id whose configs a single file goes with, by the names of its tensors.

    Raises ValueError where these cannot tell.
    """
    checkpoint = _sound(path, load_single_file_checkpoint, str(path))
    for kind, (name, example) in UNTOLD.items():
        if name in checkpoint or f"{PREFIX}{name}" in checkpoint:
            raise ValueError(
                f"{path} is a transformer of {kind}, which its tensors tell no more of; name the "
                f"diffusers folder or Hub id that it goes with, as {path}@{example}"
            )
    return str(fetch_diffusers_config(checkpoint)["pretrained_model_name_or_path"])


def _absent_parts(
    path: Path, source: Path | str, index: dict[str, Any], dtype: torch.dtype
) -> dict[str, Any]:
    """Autoencoder and text encoders that are not in the file, from the config's repository."""
    keys = list(_sound(path, load_single_file_checkpoint, str(path)))
    absent = {}
    for name, (library, kind) in parts_of(index).items():
        if name == "vae":
            starts, home = VAE_KEYS, diffusers
        elif name.startswith("text_encoder") and library == "transformers":
            starts = T5_KEYS if kind.startswith("T5") else ENCODER_KEYS[name]
            home = transformers
        else:
            continue
        if not any(key.startswith(starts) for key in keys):
            load, variant = getattr(home, kind).from_pretrained, None
            if isinstance(source, Path):
                variant = only_variant(source, [name])
            settings = {"subfolder": name, "dtype": dtype, "variant": variant}
            absent[name] = reach(source, load, source, **settings)
    return absent


def _sound(path: Path, load: Any, *arguments: Any, **settings: Any) -> Any:
    """Call a loader of a single file. Raises ValueError where the file is not what it should be."""
    try:
        return load(*arguments, **settings)
    except FileNotFoundError:
        raise
    except Exception as error:  # diffusers raises anything, from KeyError to its own
        cause: BaseException | None = error
        while cause is not None:
            if isinstance(cause, pickle.UnpicklingError):
                raise ValueError(pickled(path, cause)) from error
            cause = cause.__cause__ or cause.__context__
        raise ValueError(
            f"{path} is no checkpoint that diffusers can read ({brief(error)})"
        ) from error


@contextmanager
def _lower_case(path: Path) -> Iterator[Path]:
    """The file under a name whose suffix is in small letters, by which diffusers knows formats."""
    if path.suffix == path.suffix.lower():
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        link = Path(folder) / f"{path.stem}{path.suffix.lower()}"
        try:
            link.symlink_to(path.resolve())
        except OSError as error:  # as on Windows, without the right to
            raise ValueError(f"{path} needs a suffix in small letters; rename it") from error
        yield link
