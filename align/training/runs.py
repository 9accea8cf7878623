"""The state of a training run, whatever it trains, and how its processes and its folder begin."""

import copy
import importlib.util
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from diffusers.training_utils import EMAModel
from huggingface_hub import get_token
from torch import nn

from align.models.precision import fast_bfloat16
from align.models.processes import open_accelerator
from align.rewards import load_reward
from align.runs.folder import open_run
from align.training.scales import RunningScale


@dataclass
class Run:
    """The state of a run."""

    config: Any
    folder: Path
    accelerator: Accelerator
    model: nn.Module
    """What is trained, as the accelerator wrapped it."""
    parameters: list[nn.Parameter]
    optimizer: Any
    schedule: Any
    """The learning rate's course, a `LambdaLR`; it goes on with every step that is taken."""
    contents: dict[str, str]
    """Hashes of what settings name, by the setting."""
    max_grad_norm: float
    ema: EMAModel | None = None
    pipe: Any = None
    """The pipeline whose LoRA is trained; None where a model of its own is."""
    reward: Any = None
    prompts: Any = None
    """The `PromptSet` that a LoRA is trained on."""
    sampler: Any = None
    """What a LoRA's images are drawn by: `sampler.draw(prompts, seeds)` gives [b, 3, h, w]."""
    picture_settings: dict[str, Any] = field(default_factory=dict)
    """What a PNG says of how it was drawn."""
    lora_metadata: dict[str, str] | None = None
    """What the LoRA's file says beside its weights."""
    periods: tuple[int, ...] = ()
    """Sides in pixels of what a model draws by: its autoencoder's cells, its patches."""
    scale: RunningScale | None = None
    sharded: bool = False
    """Whether all processes must draw where one does."""
    stop_asked: Callable[[], bool] = lambda: False
    """Whether somebody wants the run to stop."""
    done: int = 0
    """Updates finished."""
    saved: int = -1
    """The step of the newest checkpoint."""
    failures: tuple[int, int] = (-1, 0)
    """An update, and how many of its images a server has given no score so far."""
    skipped: int = 0
    """Steps in a row that the gradient scaler has passed over."""
    kept: list[torch.Tensor] = field(default_factory=list)
    """What a resumed run needs beside its weights: those of an old policy."""
    course: dict[str, Any] = field(default_factory=dict)
    """What a resumed run has to know: the base's `pictures` scores; whether any group's scores
    have `differed`; the running `spread` of scores within a group (nft); the judge's figures of
    the base (`base`), of the `last` judgment, and `score`, `step` and `since` (judgments without
    a better one) of the best, `judged_on` what, the `features` of Vendi, and why it is `stopped`.
    """

    @property
    def plain(self) -> nn.Module:
        """The model without wrappers."""
        return self.accelerator.unwrap_model(self.model)

    def result(self) -> Any:
        """A copy of the model to use, with the moving average's weights where there is one."""
        model = copy.deepcopy(self.plain)
        if self.ema is not None:
            self.ema.copy_to(model.parameters())
        return model.eval()


def make_accelerator(
    config: Any, device: torch.device, mixed_precision: str | None = None, **settings: Any
) -> Accelerator:
    """Accelerate's processes on this kind of device, in the config's precision or bfloat16 where
    that is faster, unless another is given.

    Raises ValueError where the batch cannot be split over them, or the tracker is missing.
    """
    check_tracker(config.tracker)
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)  # accelerate takes the present one, whatever is asked for
    faster = "bf16" if fast_bfloat16(device.type) else "no"
    accelerator = open_accelerator(
        cpu=device.type == "cpu",
        mixed_precision=mixed_precision or config.mixed_precision or faster,
        log_with=None if config.tracker == "none" else config.tracker,
        project_dir="runs",  # until the run's folder is made
        **settings,
    )
    if config.batch_size % accelerator.num_processes:
        raise ValueError(
            f"batch_size is {config.batch_size}; it must be a multiple of the "
            f"{accelerator.num_processes} processes"
        )
    return accelerator


def open_folder(config: Any, accelerator: Accelerator, command: str, **ran: Any) -> Path:
    """The run's folder, the same in every process; `ran` as for `open_run`."""
    accelerator.wait_for_everyone()  # or a slower process finds the folder in use
    folder = [""]
    if accelerator.is_main_process:
        place = (config.out, config, config.overwrite, config.resume)
        folder = [str(open_run(*place, command=command, **ran))]
    folder = broadcast_object_list(folder)[0]
    accelerator.project_configuration.logging_dir = folder
    return Path(folder)


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


def reward_name(reward: Any) -> str:
    """An expression as it is; of anything else that `load_reward` takes, its functions' names."""
    return reward if isinstance(reward, str) else ", ".join(load_reward(reward).functions)


def check_tracker(tracker: str) -> None:
    """Raise ValueError where the tracker's package is missing."""
    if tracker in ("wandb", "trackio") and importlib.util.find_spec(tracker) is None:
        raise ValueError(
            f"tracker is {tracker!r}, which is not installed: pip install align-diffusion[track]; "
            "tensorboard and none work without it"
        )


def check_login(repository: str | None) -> None:
    """Raise ValueError where nobody is logged in to the Hub that the LoRA is to go to: before the
    training, not after it."""
    if repository and get_token() is None:
        raise ValueError(
            f"push_to_hub is {repository!r}, and nobody is logged in: run `hf auth login`"
        )
