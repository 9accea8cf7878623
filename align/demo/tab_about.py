"""The About tab."""

import gradio as gr

from align.demo import about
from align.demo.parts import QUIET


def build(tab: gr.Tab) -> None:
    """Lay the tab out."""
    gr.Markdown(
        "**align** aligns text-to-image models with rewards: it trains LoRAs by backpropagating a "
        "reward through the sampler (AlignProp), searches the noise a picture starts from "
        "(CARINOX), and draws pictures a wavefront of tokens at a time (NAR). Everything here "
        "calls the functions that the command line calls; each tab shows the command."
    )
    device = gr.HTML(label="Device", elem_id="about-device")
    tab.select(about.device, None, device, **QUIET)
    gr.HTML(about.models_table())
    gr.HTML(about.rewards_table())
    endpoints = "".join(f"- `{name}`: {text}\n" for name, text in about.ENDPOINTS.items())
    gr.Markdown(
        "### From a program\n"
        f"{endpoints}\n"
        "```text\n"
        "from gradio_client import Client\n\n"
        'client = Client("http://127.0.0.1:7860")\n'
        'client.predict(prompt="three green stars", api_name="/generate")\n'
        "```\n"
        "### What is kept\n"
        "Pictures are in a cache that is emptied after an hour. Trained LoRAs are kept in "
        "`runs/demo`, the oldest are removed when they take too much room. Every picture's PNG "
        "says how it was made. Ctrl-Enter runs the tab in view."
    )
    gr.HTML(about.versions_table())
