"""The updates of a run, whatever it trains: until the last one, a limit, a fault or a signal."""

import math
import time
from collections.abc import Callable
from typing import Any

from accelerate.utils import broadcast_object_list
from tqdm import tqdm

from align.training.stopping import Diverged, Interrupted

Record = dict[str, Any]


def run_updates(
    run: Any,
    step: Callable[[int], Record],
    *,
    save: Callable[[], object],
    look: Callable[[Record], bool] = lambda record: False,
    tell: Callable[[Record], bool] = lambda record: False,
    shown: str = "loss",
) -> None:
    """Do `step(number)`, which returns the update's record, for every update that is left.

    After each, `look(record)` runs in all processes, `tell(record)` in the main one; where either
    returns True the run ends well. `save()`, in the main one, keeps what has been reached: every
    `checkpoint_every` updates (0: never) and whatever else ends the updates. `run` has `config`,
    `folder`, `accelerator` and `done`, the count of updates; `shown` goes to the progress bar.

    Raises Diverged, saying where, and what `step` raises.
    """
    c, accelerator, started = run.config, run.accelerator, time.monotonic()
    main = accelerator.is_main_process
    bar = tqdm(total=c.steps, initial=run.done, unit="step", disable=not main)
    try:
        while run.done < c.steps:
            record = step(run.done)
            run.done += 1
            ended = look(record)
            if main:
                ended |= tell(record)
                bar.set_postfix({shown: f"{record[shown]:.4g}"}, refresh=False)
                bar.update()
                if c.checkpoint_every and run.done % c.checkpoint_every == 0:
                    save()
                ended |= time.monotonic() - started > 60 * (c.max_minutes or math.inf)
            if broadcast_object_list([ended])[0]:
                break
    except (Exception, Interrupted) as error:
        if main:
            save()
        if isinstance(error, Interrupted | Diverged):  # which all processes have met
            accelerator.wait_for_everyone()
        if isinstance(error, Diverged):
            raise Diverged(
                f"stopped at step {run.done + 1}: {error}; what was reached at step "
                f"{run.done} is saved in {run.folder}"
            ) from error
        raise
    finally:
        bar.close()
