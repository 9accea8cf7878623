"""Long work in a thread, as a generator of what it reports: closing the generator stops it."""

import queue
import threading
from collections.abc import Callable, Generator
from typing import TypeVar

T = TypeVar("T")
HEARTBEAT = 0.2  # seconds after which a waiting consumer gets control back


class Stopped(Exception):
    """Raised inside the work, at its next report, once nobody wants the result."""


def stream(work: Callable[[Callable[[T], None]], None]) -> Generator[T | None, None, None]:
    """Run `work(report)` in a thread and yield what it reports; None where it takes its time.

    Only the newest report is yielded where several have come. Closing the generator makes the
    next `report` raise Stopped, so work that reports after every step stops within one step.
    What the work raises is raised here.
    """
    reports: queue.SimpleQueue[T] = queue.SimpleQueue()
    stop, faults = threading.Event(), []

    def report(value: T) -> None:
        if stop.is_set():
            raise Stopped
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
