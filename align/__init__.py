"""Align text-to-image models with rewards.

The public names are imported on first use, so that `import align` stays light.
"""

import sys
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from align import nar, scenes
    from align.config import GenerateConfig, OptimizeConfig, TrainConfig
    from align.models import load_pipeline
    from align.noise_opt.search import optimize
    from align.rewards import load_reward
    from align.sample import decode, generate
    from align.train import train

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
    "GenerateConfig": "align.config",
    "OptimizeConfig": "align.config",
    "TrainConfig": "align.config",
    "decode": "align.sample",
    "generate": "align.sample",
    "load_pipeline": "align.models",
    "load_reward": "align.rewards",
    "optimize": "align.noise_opt.search",
    "train": "align.train",
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


class _Package(ModuleType):
    """Keeps `align.train` the function: importing the module of that name would rebind it."""

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in _HOMES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
