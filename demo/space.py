"""The demo as a Hugging Face Space: `app_file` of README.md, run as a script.

Where the package `spaces` is present (ZeroGPU hardware brings it), every computation on the demo's
one slot asks for a GPU; outside of ZeroGPU that package leaves functions as they are.
"""

import importlib.util
from collections.abc import Callable

if importlib.util.find_spec("spaces") is not None:
    # before anything that imports torch, as it says itself
    import spaces  # pyright: ignore[reportMissingImports]
else:
    spaces = None

import gradio as gr

from align.config.commands import DemoConfig
from align.demo import app, serve

SLOT = "gpu"  # concurrency_id of the page's computations
CONFIG = DemoConfig(host="0.0.0.0", port=7860)  # where a Space's proxy looks for it


def on_gpu(build: Callable[..., gr.Blocks], decorate: Callable) -> Callable[..., gr.Blocks]:
    """`build`, with the handler of every event of the GPU's slot decorated."""

    def build_page(*arguments: bool) -> gr.Blocks:
        page = build(*arguments)
        for event in page.fns.values():
            if event.concurrency_id == SLOT and event.fn is not None:
                event.fn = decorate(event.fn)
        return page

    return build_page


if __name__ == "__main__":
    if spaces is not None:
        app.build = on_gpu(app.build, spaces.GPU)
    serve.serve(CONFIG)
