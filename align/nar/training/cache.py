"""Pictures tokenized once, before training; hashes to know data and tokenizers by."""

import hashlib
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from align.nar.training.data import Picture, fingerprint, load_pixels
from align.runs.files import atomic_path


def cached_tokens(
    folder: Path, pictures: list[Picture], image_tokenizer: Any, flip: bool, accelerator: Any
) -> Int[Tensor, "views n t"]:
    """The token ids of all pictures (and of their mirror images), kept in `tokens.safetensors`."""
    path = folder / "tokens.safetensors"
    weights = sum(float(p.detach().double().abs().sum()) for p in image_tokenizer.parameters())
    key = fingerprint(pictures, weights, flip, dict(image_tokenizer.config))
    with accelerator.main_process_first():
        if path.is_file():
            with safe_open(path, framework="pt") as file:
                if (file.metadata() or {}).get("fingerprint") == key:
                    return file.get_tensor("ids")
        tokens = _tokenize(pictures, image_tokenizer, flip)
        with atomic_path(path) as temporary:
            save_file({"ids": tokens}, temporary, metadata={"fingerprint": key})
    return tokens


@torch.no_grad()
def _tokenize(
    pictures: list[Picture], image_tokenizer: Any, flip: bool, batch: int = 32
) -> Int[Tensor, "views n t"]:
    views: list[list[Tensor]] = [[], []]
    for start in range(0, len(pictures), batch):
        part = pictures[start : start + batch]
        size = tuple(image_tokenizer.config.image_size)
        images = torch.stack([load_pixels(picture, size) for picture in part])  # pyright: ignore
        images = (images.float() / 255).to(image_tokenizer.device)
        views[0].append(image_tokenizer.encode(images).int().cpu())
        if flip:
            views[1].append(image_tokenizer.encode(images.flip(-1)).int().cpu())
    return torch.stack([torch.cat(view) for view in views if view])


def digest_of_pictures(pictures: list[Picture]) -> str:
    """A hash of their names without folders, sizes of their files, labels and captions."""
    digest = hashlib.sha256()
    for picture in pictures:
        file = Path(picture.name)
        size = file.stat().st_size if file.is_file() else 0
        digest.update(f"{file.name}|{size}|{picture.label}|{picture.caption}\n".encode())
    return digest.hexdigest()


def digest_of_weights(module: nn.Module) -> str:
    """A hash of a module's parameters and buffers."""
    digest = hashlib.sha256()
    for name, value in module.state_dict().items():
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()
