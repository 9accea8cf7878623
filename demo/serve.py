"""`align demo`: serve the page until it is interrupted."""

import importlib.util
import logging
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from align.config import DemoConfig
from align.demo import app, handlers, training, uploads
from align.demo.guard import Guard

log = logging.getLogger(__name__)
FIRST_PORT = 7860
LOOPBACK = ("localhost", "127.0.0.1", "::1")
QUEUE = 30  # visitors waiting; further ones are told that it is full


def serve(config: DemoConfig) -> None:
    """Serve the demo; returns only by an exception, such as KeyboardInterrupt.

    Raises OSError where the port is taken.
    """
    page = app.build(config.allow_any_model)
    page.queue(max_size=QUEUE, default_concurrency_limit=4)
    with _own_address_without_proxy(config.host, config.share):
        public, address = _launch(page, config)
    log.info("the demo is at %s", public or address)
    handlers.warm_up()
    try:
        threading.Event().wait()
    finally:
        training.end()
        page.close()


def _launch(page: Any, config: DemoConfig) -> tuple[str | None, str]:
    from starlette.middleware import Middleware

    _, address, public = page.launch(
        server_name=config.host,
        server_port=config.port,
        share=config.share,
        auth=tuple(config.auth.split(":", 1)) if config.auth else None,  # pyright: ignore
        prevent_thread_lock=True,
        quiet=True,
        ssr_mode=False,
        run_history=False,
        enable_monitoring=False,
        footer_links=["api"],
        max_file_size=uploads.MAX_BYTES,
        app_kwargs={"middleware": [Middleware(Guard, page=page)]},
        **app.APPEARANCE,
    )
    return public, address


@contextmanager
def _own_address_without_proxy(host: str, share: bool) -> Iterator[None]:
    """Leave this machine's own addresses out of a network's proxy, as Gradio asks its own pages.

    While the page starts, a SOCKS proxy is left out altogether: where its package is missing, no
    address could be asked. A public link (`share`) needs the proxy, so there it stays.
    """
    listed = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
    names = [name.strip() for name in listed.split(",") if name.strip()]
    names += [] if "*" in names else [*LOOPBACK, host]
    os.environ["no_proxy"] = os.environ["NO_PROXY"] = ",".join(dict.fromkeys(names))
    socks = {
        name: value
        for name, value in os.environ.items()
        if name.lower().endswith("_proxy") and value.lower().startswith("socks")
    }
    if socks and importlib.util.find_spec("socksio") is None:
        if share:
            raise ValueError(
                f"--share goes through the SOCKS proxy of {next(iter(socks))}, which needs "
                "`pip install httpx[socks]`; install it, or leave --share out"
            )
        for name in socks:
            del os.environ[name]
    try:
        yield
    finally:
        os.environ.update(socks)
