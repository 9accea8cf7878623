"""Align text-to-image models with rewards.

The public names are imported on first use, so that `import align` stays light.
"""

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from align import nar, scenes
    from align.alignprop.train import train
    from align.config.commands import GenerateConfig
    from align.config.optimize import OptimizeConfig
    from align.config.train import TrainConfig
    from align.diffusion.sample import decode, generate
    from align.models.load import load_pipeline
    from align.noise_opt.search import optimize
    from align.rewards import load_reward

__all__ = [
    "GenerateConfig",
    "OptimizeConfig",
    "TrainConfig",
    "decode",
    "generate",
    "load_pipeline",
    "load_reward",
    "nar",
    "optimize",
    "scenes",
    "train",
]

_MODULES = {"nar", "scenes"}
_HOMES = {
    "GenerateConfig": "align.config.commands",
    "OptimizeConfig": "align.config.optimize",
    "TrainConfig": "align.config.train",
    "decode": "align.diffusion.sample",
    "generate": "align.diffusion.sample",
    "load_pipeline": "align.models.load",
    "load_reward": "align.rewards",
    "optimize": "align.noise_opt.search",
    "train": "align.alignprop.train",
}

try:
    __version__ = version("align-diffusion")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0+unknown"


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return import_module(f"align.{name}")
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'align' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
