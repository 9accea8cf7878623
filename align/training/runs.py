"""What judging, saving and reporting need of a training run, whatever kind of model it trains."""

import importlib.util
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from accelerate import Accelerator
from diffusers.training_utils import EMAModel
from huggingface_hub import get_token
from jaxtyping import Float
from torch import Tensor, nn

from align.language.prompts import PromptSet
from align.training.scales import RunningScale


@runtime_checkable
class Run(Protocol):
    """The state of a run; `align.alignprop.session.Session` is the one of diffusion models."""

    config: Any
    folder: Path
    accelerator: Accelerator
    pipe: Any
    reward: Any
    prompts: PromptSet
    parameters: list[nn.Parameter]
    optimizer: Any
    schedule: Any
    ema: EMAModel | None
    scale: RunningScale | None
    done: int
    """Updates finished."""
    saved: int
    """The step of the newest checkpoint."""
    skipped: int
    """Steps in a row that a gradient scaler has passed over."""
    course: dict[str, Any]
    """What a resumed run has to know beside weights, see `Session`."""

    @property
    def together(self) -> bool:
        """Whether all processes must draw where one does."""
        ...

    @property
    def picture_settings(self) -> dict[str, Any]:
        """What a PNG says of how it was drawn."""
        ...

    @property
    def lora_metadata(self) -> dict[str, str] | None:
        """What the LoRA's file says beside its weights."""
        ...

    def draw(self, prompts: list[str], seeds: list[int]) -> Float[Tensor, "b 3 h w"]:
        """Images of the present model, one per prompt, each from its seed."""
        ...


def start_trackers(run: Run) -> None:
    """Begin the curves; those of a resumed run go on from its checkpoint."""
    c = run.config
    if c.tracker == "none":
        return
    if c.tracker == "tensorboard":  # the configuration is in run.json already
        purge: dict[str, Any] = {"purge_step": run.done + 1} if run.done else {}
        run.accelerator.init_trackers("tensorboard", init_kwargs={"tensorboard": purge})
        return
    values = {k: v for k, v in asdict(c).items() if isinstance(v, str | int | float | bool)}
    run.accelerator.init_trackers("align", config=values)


def check_services(config: Any) -> None:
    """Raise ValueError where the tracker's package is missing, or nobody is logged in to the Hub
    that the LoRA is to go to: before the training, not after it."""
    if config.push_to_hub and get_token() is None:
        raise ValueError(
            f"push_to_hub is {config.push_to_hub!r}, and nobody is logged in: run `hf auth login`"
        )
    tracker = config.tracker
    if tracker in ("wandb", "trackio") and importlib.util.find_spec(tracker) is None:
        raise ValueError(
            f"tracker is {tracker!r}, which is not installed: pip install align-diffusion[track]; "
            "tensorboard and none work without it"
        )
