"""How a tab shows long work: what the work reports becomes updates of the page's outputs."""

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from typing import Any, TypeVar

import gradio as gr

from align.demo.messages import status
from align.demo.streaming import stopped, until_stopped

T = TypeVar("T")
Update = dict[str, Any]  # the page's outputs that change, by name; one of them is `status`


def update(outputs: Sequence[str], **changed: Any) -> tuple:
    """Values for a tab's outputs in their order; those that are not named stay as they are."""
    return tuple(changed.get(name, gr.skip()) for name in outputs)


def drive(
    outputs: Sequence[str],
    reports: Generator[T | None, None, None],
    run_name: Any,
    show: Callable[[T, T | None], Iterator[Update]],
    end: Callable[[T, bool], Iterator[Update]],
) -> Iterator[tuple]:
    """The updates of a tab while its work goes on, and its last ones.

    Args:
        show: the updates for a report, given the one before it.
        end: the updates for the last report, given whether a visitor has stopped the run; nothing
            where there is no result yet.

    Raises RuntimeError where the work ends without a result though nobody has stopped it.
    """
    last, ended = None, False
    with closing(until_stopped(reports, run_name)) as going:
        for report in going:
            if report is None:  # a sign of life, at which a visitor who has gone is noticed
                yield update(outputs)
                continue
            for changed in show(report, last):
                yield update(outputs, **changed)
            last = report
    early = stopped(run_name)
    for changed in end(last, early) if last is not None else ():
        ended = True
        yield update(outputs, **changed)
    if not ended and not early:
        raise RuntimeError("the work ended without a picture")
    if not ended:
        yield update(outputs, status=status("Stopped."))
