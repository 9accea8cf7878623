"""`align demo`."""

import importlib.util

from align.config.commands import DemoConfig


def demo(config: DemoConfig) -> None:
    """Serve the demo; the page is there before anything heavy is imported."""
    if importlib.util.find_spec("gradio") is None:
        raise ValueError("the demo needs Gradio: pip install align-diffusion[demo]")
    from align.demo.network import own_address_without_proxy

    with own_address_without_proxy(config.host, config.share):
        from align.demo.serve import serve
    serve(config)
