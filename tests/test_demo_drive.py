"""The one driver of the demo's tabs: what a page shows of reports, stops and faults."""

import gradio as gr
import pytest

from align.demo.drive import drive, update
from align.demo.parts import APPEARANCE
from align.demo.streaming import stop, stream

OUTPUTS = ("picture", "status")


def driven(reports, run_name="", needed=1):
    """The updates of work that reports these numbers; it has a result from `needed` on."""

    def show(newer, former):
        yield {"status": f"{former} then {newer}"}

    def end(last, early):
        if last >= needed:
            yield {"picture": last, "status": "stopped" if early else "done"}

    def work(report):
        for value in reports:
            report(value)

    return drive(OUTPUTS, stream(work), run_name, show, end)


def test_an_update_leaves_alone_what_it_does_not_name():
    assert update(OUTPUTS, status="going") == (gr.skip(), "going")
    assert update(OUTPUTS, picture=None) == (None, gr.skip())  # None empties an output


def test_reports_are_shown_and_the_last_one_ends_the_page():
    updates = [one for one in driven([3]) if one != update(OUTPUTS)]
    assert updates == [(gr.skip(), "None then 3"), (3, "done")]


def test_a_report_is_shown_beside_the_one_before():
    def reports():
        yield from (1, None, 2)  # None: it takes its time

    shown = []
    list(drive(OUTPUTS, reports(), "", lambda *two: shown.append(two) or iter(()), finish))
    assert shown == [(1, None), (2, 1)]


def finish(last, early):
    yield {"picture": last}


def test_a_stopped_run_keeps_what_it_has_or_says_so():
    stop("driven-early")
    assert list(driven([3], "driven-early")) == [
        (gr.skip(), '<div class="status" role="status"><p>Stopped.</p></div>')
    ]

    def reports():
        yield 3
        stop("driven-late")
        yield 4

    updates = list(drive(OUTPUTS, reports(), "driven-late", lambda *_: iter(()), last_of))
    assert updates == [(3, "stopped")]


def last_of(last, early):
    yield {"picture": last, "status": "stopped" if early else "done"}


def test_work_that_ends_without_a_result_is_a_fault():
    for reports in ([], [0]):
        with pytest.raises(RuntimeError, match="without a picture"):
            list(driven(reports))


def test_closing_the_page_stops_the_work():
    closed = []

    def reports():
        try:
            yield 1
            yield 2
        finally:
            closed.append(True)

    updates = drive(OUTPUTS, reports(), "", lambda *two: iter([{"picture": two[0]}]), finish)
    assert next(updates) == (1, gr.skip())
    updates.close()
    assert closed == [True]


def test_style_and_script_are_files_of_their_own():
    assert ".status progress" in APPEARANCE["css"]
    assert "window.alignDemo" in APPEARANCE["head"]
    assert "</script" not in APPEARANCE["head"][:-9]  # it would end the script
