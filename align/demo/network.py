"""The network that the demo stands in: proxies of a company or a country."""

import importlib.util
import os
from collections.abc import Iterator
from contextlib import contextmanager

LOOPBACK = ("localhost", "127.0.0.1", "::1")


@contextmanager
def own_address_without_proxy(host: str, share: bool) -> Iterator[None]:
    """Leave this machine's own addresses out of a network's proxy, as Gradio asks its own pages.

    Meanwhile a SOCKS proxy is left out altogether where its package is missing, without which
    Gradio cannot even be imported. A public link (`share`) would need the proxy.
    Raises ValueError where it is asked for all the same.
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
                "`pip install socksio`; install it, or leave --share out"
            )
        for name in socks:
            del os.environ[name]
    try:
        yield
    finally:
        os.environ.update(socks)
