"""Schedulers of diffusers: chosen by name, copied for a run, and which calls make up a step."""

import ast
import copy
import inspect
import logging
from collections.abc import Callable
from typing import Any

import diffusers
import torch
from diffusers.schedulers.scheduling_utils import KarrasDiffusionSchedulers
from torch import Tensor

from align.config.checks import one_of
from align.diffusion.denoisers import default_steps, family_of, latent_shape

log = logging.getLogger(__name__)
# Models trained on noise of discrete steps go with all of the first kind, models that flow with
# the second. LCM-LoRA and Hyper-SD need two that diffusers' own list leaves out.
NOISE = (*(kind.name for kind in KarrasDiffusionSchedulers), "LCMScheduler", "TCDScheduler")
FLOW = (
    "FlowMatchEulerDiscreteScheduler",
    "FlowMatchHeunDiscreteScheduler",
    "FlowMatchLCMScheduler",
    "DPMSolverMultistepScheduler",
    "UniPCMultistepScheduler",
)
PRK_STEPS, PRK_CALLS = 3, 4  # PNDM's first steps by Runge-Kutta, and the calls of each


def set_scheduler(pipe: Any, text: str | None) -> None:
    """Give a pipeline another scheduler of diffusers: NAME, or NAME:KEY=VALUE,KEY=VALUE.

    What the present one was told, by its file, the pipeline or the user, the new one is told too,
    as with `NAME.from_config(pipe.scheduler.config)`. None, and the present one's own name without
    keys, leave it as it is. Raises ValueError for a class, key or value that does not fit.
    """
    if text is None:
        return
    name, _, keys = text.partition(":")
    old = pipe.scheduler
    kinds = _kinds(old)
    if name not in kinds:
        raise ValueError(
            f"scheduler is {name!r}, which does not go with the {type(old).__name__} of "
            f"{type(pipe).__name__}; {one_of(name, sorted(kinds))}"
        )
    kind = kinds[name]
    takes = inspect.signature(kind.__init__).parameters.keys() - {"self", "kwargs"}
    options = _options(name, keys, takes)
    if kind is type(old) and not options:
        return
    told = stated_config(old) | _flow_settings(old, takes)
    told = {key: value for key, value in told.items() if key in takes}
    try:
        pipe.scheduler = kind(**told | options)
    except ImportError as error:
        raise ValueError(f"scheduler is {name!r}: {' '.join(str(error).split())}") from error
    except (TypeError, ValueError, NotImplementedError, RuntimeError) as error:
        raise ValueError(f"scheduler is {text!r}: {error}") from error
    if getattr(pipe.scheduler.config, "clip_sample", False) and "clip_sample" not in told | options:
        log.warning(
            "warning: %s clips its predictions to [-1, 1], where latents are wider; "
            "%s:clip_sample=False does not",
            name,
            name,
        )


def stated_config(scheduler: Any) -> dict[str, Any]:
    """The settings that a scheduler was given, when it was made or later.

    `from_config` takes what was not given at first for the class's own and forgets what a pipeline
    (Stable Diffusion's `steps_offset` and `clip_sample`) or the user has put there since.
    """
    config = {key: value for key, value in scheduler.config.items() if key[0] != "_"}
    unsaid = scheduler.config.get("_use_default_values", ())
    defaults = inspect.signature(type(scheduler).__init__).parameters
    return {
        key: value
        for key, value in config.items()
        if key not in unsaid or key not in defaults or value != defaults[key].default
    }


def copy_scheduler(scheduler: Any) -> Any:
    """A copy with everything that was set on the scheduler, whose runs leave the original alone."""
    fresh = copy.copy(scheduler)
    for name, value in vars(scheduler).items():
        if isinstance(value, list):  # of former outputs
            setattr(fresh, name, list(value))
    fresh._internal_dict = copy.copy(scheduler._internal_dict)  # some write their shift there
    return fresh


def set_timesteps(fresh: Any, set_them: Callable[[], Any], steps: int) -> Any:
    """Let a copy make its schedule of so many steps; returns what `set_them()` does.

    Raises ValueError where the scheduler cannot.
    """
    name = type(fresh).__name__
    if _runs_prk(fresh) and steps <= PRK_STEPS:
        raise ValueError(
            f"{name} with Runge-Kutta steps needs at least {PRK_STEPS + 1} denoising steps, not "
            f"{steps}; {name}:skip_prk_steps=True goes without them, as Stable Diffusion does"
        )
    try:
        return set_them()
    except (TypeError, AssertionError, IndexError, RuntimeError, ZeroDivisionError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(f"{name} makes no schedule of {steps} steps here ({reason})") from error


def step_of_calls(scheduler: Any, calls: int, steps: int) -> list[int]:
    """Which denoising step each of the denoiser's `calls` is part of.

    Schedulers of second order (Heun) call it twice a step, the last time once; PNDM twice in the
    first step, or four times in each of the first three; the others once a step.
    """
    if scheduler.order > 1:
        return [min(index // scheduler.order, steps - 1) for index in range(calls)]
    early: list[int] = []
    if _runs_prk(scheduler):
        early = [step for step in range(PRK_STEPS) for _ in range(PRK_CALLS)]
    rest = [max(index - calls + steps, 0) for index in range(calls)]
    return early + rest[len(early) :]


def enter_at(scheduler: Any, start: int, calls: int) -> None:
    """Make a copy, whose schedule is set, ready to begin at call `start`, without a past.

    Raises ValueError for PNDM before its last call: it takes the second call that it sees for a
    repetition of the first.
    """
    if start == 0 or not _is_pndm(scheduler):
        return
    if start < calls - 1:
        raise ValueError(
            f"{type(scheduler).__name__} remembers former steps and cannot begin at call {start} "
            f"of {calls}; use another scheduler, such as DDIMScheduler"
        )
    scheduler.register_to_config(skip_prk_steps=True)  # one step of first order


def check_schedule(
    pipe: Any,
    num_inference_steps: int | None,
    eta: float = 0.0,
    height: int | None = None,
    width: int | None = None,
) -> list[int]:
    """Raise ValueError where the pipeline's scheduler cannot do so many steps, or ignores `eta`.

    Returns which step each call of the denoiser is part of. None takes the pipeline's own number.
    """
    steps = default_steps(pipe) if num_inference_steps is None else num_inference_steps
    fresh, size = copy_scheduler(pipe.scheduler), latent_shape(pipe, height, width)[-2:]
    check_eta(fresh, eta)
    make, device = family_of(pipe).set_timesteps, torch.device("cpu")
    schedule: Tensor = set_timesteps(fresh, lambda: make(pipe, fresh, steps, device, size), steps)
    return step_of_calls(fresh, len(schedule), steps)


def check_eta(scheduler: Any, eta: float) -> None:
    """Raise ValueError where `eta` is given to a scheduler that has none."""
    if eta and "eta" not in inspect.signature(scheduler.step).parameters:
        raise ValueError(
            f"eta is {eta:g}, which {type(scheduler).__name__} does not take; give 0, or a "
            "scheduler that does, such as DDIMScheduler"
        )


def _kinds(scheduler: Any) -> dict[str, Any]:
    """The classes that can take a scheduler's place, and its own, by name."""
    names: tuple[str, ...] = ()
    if _flows(scheduler):
        names = FLOW
    elif hasattr(scheduler, "alphas_cumprod"):
        names = NOISE
    found = {name: getattr(diffusers, name) for name in names if hasattr(diffusers, name)}
    return found | {type(scheduler).__name__: type(scheduler)}


def _flows(scheduler: Any) -> bool:
    config = scheduler.config
    return hasattr(scheduler, "scale_noise") or config.get("prediction_type") == "flow_prediction"


def _flow_settings(old: Any, takes: Any) -> dict[str, Any]:
    """What a flow's schedule is called in the scheduler classes of either kind."""
    if not _flows(old):
        return {}
    shift = getattr(old, "shift", None) or old.config.get("flow_shift", 1.0)
    if "use_flow_sigmas" in takes:
        kind = {"prediction_type": "flow_prediction", "use_flow_sigmas": True}
        return kind | {"flow_shift": shift}
    return {"shift": shift}


def _options(name: str, text: str, takes: Any) -> dict[str, Any]:
    """The keys and values after a scheduler's name. Raises ValueError for one it does not take."""
    options = {}
    for part in text.split(",") if text else ():
        key, equals, value = part.strip().partition("=")
        if not equals or key not in takes:
            raise ValueError(
                f"{part.strip()!r} is no setting of {name}, which is written KEY=VALUE; "
                f"{one_of(key, sorted(takes))}"
            )
        try:
            options[key] = ast.literal_eval(value.capitalize() if value.islower() else value)
        except (ValueError, SyntaxError):
            options[key] = value
    return options


def _is_pndm(scheduler: Any) -> bool:
    return hasattr(scheduler, "plms_timesteps")


def _runs_prk(scheduler: Any) -> bool:
    return _is_pndm(scheduler) and not scheduler.config.skip_prk_steps
