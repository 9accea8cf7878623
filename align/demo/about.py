"""The About tab: models, rewards, licences, versions, device and what the demo allows."""

import platform
from html import escape
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from align.demo.choices import EMBEDDED, embedded
from align.demo.messages import plural
from align.rewards.listing import list_rewards

PACKAGES = (
    "align-diffusion", "torch", "diffusers", "transformers", "peft", "gradio", "numpy", "pillow",
)  # fmt: skip
KINDS = {
    "StableDiffusionPipeline": "text-to-image diffusion",
    "NARPipeline": "neighboring autoregression, 16 by 16 tokens",
    "NARVideoPipeline": "neighboring autoregression, clips",
}
ENDPOINTS = {
    "/generate": "pictures of a prompt",
    "/optimize": "the best noise for a prompt",
    "/train": "begins a LoRA's training in the background",
    "/training": "how far that training is",
    "/nar": "pictures by neighboring-autoregressive decoding",
    "/compare": "one prompt by several methods",
}
LICENCE = "CC0-1.0"


def models_table() -> str:
    """The models that ship with the package."""
    rows = [
        (name, KINDS.get(kind, kind), megabytes(EMBEDDED / name.removeprefix("embedded/")), LICENCE)
        for name, kind in embedded().items()
    ]
    return table("Models", ("Name", "Kind", "Size", "Licence"), rows)


def rewards_table() -> str:
    """What pictures can be judged by."""
    rows = [
        (
            one.name,
            "judge only" if one.judge_only else "reward",
            one.measures,
            one.range,
            one.licence or "code: Apache-2.0",
        )
        for one in list_rewards()
        if one.installed
    ]
    return table("Rewards and judges", ("Name", "Use", "Measures", "Range", "Licence"), rows)


def versions_table() -> str:
    """The versions of what the demo is made of."""
    rows = [("python", platform.python_version())]
    for package in PACKAGES:
        try:
            rows.append((package, version(package)))
        except PackageNotFoundError:
            continue
    return table("Versions", ("Package", "Version"), rows)


def device() -> str:
    """Where the models run; imports torch."""
    import torch

    from align.models.load import best_device

    name = best_device()
    detail = (
        torch.cuda.get_device_name()
        if name == "cuda"
        else plural(torch.get_num_threads(), "thread")
    )
    where = f"<b>{escape(name)}</b> ({escape(detail)})"
    return f'<div class="findings"><p>Models run on {where}.</p></div>'


def table(caption: str, heads: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """An HTML table."""
    head = "".join(f'<th scope="col">{escape(text)}</th>' for text in heads)
    body = "".join(
        f'<tr><th scope="row">{escape(first)}</th>'
        + "".join(f"<td>{escape(text)}</td>" for text in rest)
        + "</tr>"
        for first, *rest in rows
    )
    return (
        f'<div class="findings wide" tabindex="0" role="region" aria-label="{escape(caption)}">'
        f"<table><caption>{escape(caption)}</caption><thead><tr>{head}</tr></thead>"
        f"<tbody>{body}</tbody></table></div>"
    )


def megabytes(folder: Path) -> str:
    """The size of a folder."""
    total = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    return f"{total / 1e6:.1f} MB"
