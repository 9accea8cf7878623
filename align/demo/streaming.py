"""Long work in a thread, as a generator of what it reports: closing the generator stops it."""

import queue
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from typing import Any, TypeVar

T = TypeVar("T")
HEARTBEAT = 0.2  # seconds after which a waiting consumer gets control back
NAME_LENGTH = 64  # of a run, as the browser names it
TO_STOP: deque[str] = deque(maxlen=256)  # names of the runs that visitors stopped last


class Stopped(Exception):
    """Raised inside the work, at its next report, once nobody wants the result."""


def stream(
    work: Callable[[Callable[[T | None], None]], None],
) -> Generator[T | None, None, None]:
    """Run `work(report)` in a thread and yield what it reports; None where it takes its time.

    Only the newest report is yielded where several have come. Closing the generator makes the
    next `report` raise Stopped, so work that reports after every step stops within one step;
    `report(None)` says nothing and is only such a place. What the work raises is raised here.
    """
    reports: queue.SimpleQueue[T] = queue.SimpleQueue()
    stop, faults = threading.Event(), []

    def report(value: T | None) -> None:
        if stop.is_set():
            raise Stopped
        if value is not None:
            reports.put(value)

    def run() -> None:
        try:
            work(report)
        except Stopped:
            pass
        except BaseException as fault:
            faults.append(fault)

    worker = threading.Thread(target=run, name="align-demo-work", daemon=True)
    worker.start()
    try:
        while worker.is_alive() or not reports.empty():
            yield _newest(reports)
        worker.join()
        if faults:
            raise faults[0]
    finally:
        stop.set()


def _newest(reports: "queue.SimpleQueue[T]") -> T | None:
    newest = None
    try:
        newest = reports.get(timeout=HEARTBEAT)
        while True:
            newest = reports.get_nowait()
    except queue.Empty:
        return newest


@contextmanager
def stoppable(module: Any, report: Callable[[None], None]) -> Iterator[None]:
    """Make every pass of a torch module a place where the work can be stopped."""
    hook = module.register_forward_pre_hook(lambda *_: report(None))
    try:
        yield
    finally:
        hook.remove()


def stop(run_name: Any) -> None:
    """End the run of that name within one step, or as it begins where it still waits."""
    if isinstance(run_name, str) and run_name:
        TO_STOP.append(run_name[:NAME_LENGTH])


def stopped(run_name: Any) -> bool:
    """Whether a visitor has stopped the run of that name."""
    return isinstance(run_name, str) and run_name[:NAME_LENGTH] in TO_STOP


def until_stopped(
    updates: Generator[T | None, None, None], run_name: Any
) -> Generator[T | None, None, None]:
    """The updates, until they end or a visitor stops the run; closed in any case."""
    with closing(updates):
        for update in updates:
            if stopped(run_name):
                return
            yield update
