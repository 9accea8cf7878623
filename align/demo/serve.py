"""`align demo`: serve the page until it is interrupted."""

import logging
import threading
from typing import Any

from align.config.commands import DemoConfig
from align.demo import app, handlers, training, uploads
from align.demo.guard import Guard
from align.demo.network import own_address_without_proxy

log = logging.getLogger(__name__)
PATIENCE = 60  # seconds that loading gets to end
QUEUE = 30  # visitors waiting; further ones are told that it is full


def serve(config: DemoConfig) -> None:
    """Serve the demo; returns only by an exception, such as KeyboardInterrupt.

    Raises OSError where the port is taken.
    """
    page = app.build(config.allow_any_model)
    page.queue(max_size=QUEUE, default_concurrency_limit=4)
    with own_address_without_proxy(config.host, config.share):
        public, address = _launch(page, config)
    log.info("the demo is at %s", public or address)
    warming = handlers.warm_up()
    try:
        threading.Event().wait()
    finally:
        training.end()
        page.close()
        warming.join(PATIENCE)  # Python that ends below a thread within PyTorch may abort


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
