"""The embedded world: prompts, pictures, and a verifier that knows the truth about both."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from align.scenes.dataset import PROMPT_SETS, prompt_set, sample
from align.scenes.grammar import (
    CATEGORIES,
    Relation,
    Scene,
    SceneObject,
    category,
    describe,
    is_heldout,
    parse,
)
from align.scenes.render import layout, render

if TYPE_CHECKING:
    from align.scenes.reader import ReadObject, read
    from align.scenes.taste import Taste, measure_taste
    from align.scenes.verifier import verify

__all__ = [
    "CATEGORIES",
    "PROMPT_SETS",
    "ReadObject",
    "Relation",
    "Scene",
    "SceneObject",
    "Taste",
    "category",
    "describe",
    "is_heldout",
    "layout",
    "measure_taste",
    "parse",
    "prompt_set",
    "read",
    "render",
    "sample",
    "verify",
]

# read, verify and measure_taste need scipy and torch, which drawing does without
_HOMES = {
    "ReadObject": "align.scenes.reader",
    "Taste": "align.scenes.taste",
    "measure_taste": "align.scenes.taste",
    "read": "align.scenes.reader",
    "verify": "align.scenes.verifier",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'align.scenes' has no attribute {name!r}")
