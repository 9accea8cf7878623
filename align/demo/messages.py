"""What the page says: one line of state, findings, and errors as one sentence."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from html import escape
from typing import Any

import gradio as gr

from align.config.checks import INPUT_ERRORS, one_line

log = logging.getLogger(__name__)
NO_MEMORY = "The memory was not enough; ask for fewer or smaller pictures."


@contextmanager
def one_sentence() -> Iterator[None]:
    """Show what goes wrong as one sentence in the page, never as a traceback."""
    try:
        yield
    except gr.Error:
        raise
    except INPUT_ERRORS as error:
        raise gr.Error(sentence(error), print_exception=False) from error
    except MemoryError as error:
        raise gr.Error(NO_MEMORY, print_exception=False) from error
    except Exception as error:
        log.exception("a visitor's request failed")
        text = "Something went wrong on the server; its log says what."
        text = NO_MEMORY if "out of memory" in str(error) else text
        raise gr.Error(text, print_exception=False) from error


def sentence(error: BaseException) -> str:
    """An error's message as a sentence that HTML can hold."""
    text = escape(one_line(error), quote=False)
    return f"{text[:1].upper()}{text[1:]}" + ("" if text.endswith((".", "?", "!")) else ".")


def status(text: str, warnings: Any = (), link: str = "") -> str:
    """The line under the results, with what a visitor should know and a link to the settings."""
    notes = "".join(f'<p class="warning">⚠ {escape(warning)}.</p>' for warning in warnings)
    where = f' · <a class="permalink" href="{escape(link)}">Link to these settings</a>'
    line = f"<p>{escape(text)}{where if link else ''}</p>"
    return f'<div class="status" role="status">{line}{notes}</div>'


def progress(text: str, done: float, total: float, seconds: float, warnings: Any = ()) -> str:
    """The line while a job runs: what it does, the time left, a bar."""
    if done:
        text = f"{text} · {seconds / done * (total - done):.0f} s left"
    bar = f'<progress value="{done:g}" max="{total:g}" aria-label="{escape(text)}"></progress>'
    return status(text, warnings).replace("</p>", f"</p>{bar}", 1)


def plural(count: int, word: str) -> str:
    """`1 picture`, `2 pictures`."""
    return f"{count} {word}{'s' * (count != 1)}"
