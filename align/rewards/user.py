"""A user's own reward: a function in a Python file, or any callable."""

import importlib.util
import inspect
import sys
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path

import torch
from torch import Tensor, nn

from align.config.checks import one_of


def load_function(path: Path, name: str) -> Callable:
    """The function `name` of the Python file `path`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it cannot be imported, or has no such function (near names are given).
    """
    if not path.is_file():
        raise FileNotFoundError(f"no reward file {path}")
    spec = importlib.util.spec_from_file_location(f"align_user_reward_{path.stem}", path)
    assert spec is not None  # a .py file always has a loader
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up there
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise ValueError(f"cannot import reward file {path}: {_describe(error)}") from error
    function = vars(module).get(name)
    if not callable(function):
        functions = [k for k, v in vars(module).items() if inspect.isfunction(v)]
        raise ValueError(f"{path} has no function {name!r}: {one_of(name, functions)}")
    return function


class UserReward(nn.Module):
    """`function` with its result checked and turned into scores [b].

    It is handed copies: what it writes into them reaches nobody else. A module, so that `.to()`
    and `.double()` reach the weights of a function that has some.
    """

    differentiable: bool
    wants_metadata: bool
    wants_group: bool

    def __init__(self, function: Callable, name: str):
        super().__init__()
        self.function = function
        self.name = name
        self.differentiable = getattr(function, "differentiable", True)
        self.wants_group = getattr(function, "wants_group", False)
        self.wants_metadata = _wants_metadata(function, name)

    def forward(self, images: Tensor, prompts: list[str], metadata=None) -> Tensor:
        extra = ()
        if self.wants_metadata:
            extra = ([{} for _ in prompts] if metadata is None else deepcopy(list(metadata)),)
        try:
            result = self.function(images.clone(), list(prompts), *extra)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            raise ValueError(f"reward {self.name!r} raised {_describe(error)}") from error
        return _as_scores(result, images, self.name)


def _wants_metadata(function: Callable, name: str) -> bool:
    target = function.forward if isinstance(function, nn.Module) else function
    try:
        parameters = inspect.signature(target).parameters.values()
    except ValueError:  # some builtins have no signature
        return False
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    needed = [p for p in positional if p.default is p.empty]
    spread = any(p.kind is p.VAR_POSITIONAL for p in parameters)
    if (len(positional) < 2 and not spread) or len(needed) > 3:
        raise TypeError(
            f"reward {name!r} must be callable as f(images, prompts) or "
            f"f(images, prompts, metadata), but takes ({', '.join(p.name for p in parameters)})"
        )
    return len(needed) == 3 or any(p.name == "metadata" for p in positional[2:3])


def _as_scores(result, images: Tensor, name: str) -> Tensor:
    if isinstance(result, tuple):  # (scores, info), as TRL's reward functions return
        result = result[0]
    try:
        scores = torch.stack(list(result)) if _holds_tensors(result) else torch.as_tensor(result)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"reward {name!r} must return one number per image, got {type(result).__name__}"
        ) from error
    if scores.shape != (len(images),):
        raise ValueError(
            f"reward {name!r} must return scores of shape [{len(images)}], got {list(scores.shape)}"
        )
    scores = scores.to(images.device)  # other terms and the loss are there
    return scores if scores.is_floating_point() else scores.float()


def _holds_tensors(result) -> bool:
    return isinstance(result, list) and all(isinstance(item, Tensor) for item in result)


def _describe(error: Exception) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
