"""The Generate tab: pictures of a prompt, with a live preview."""

import gradio as gr

from align.demo import choices, handlers, parts
from align.demo.parts import QUIET


def build(page: gr.Blocks, allow_any_model: bool) -> dict:
    """Lay the tab out; returns its fields by their names in links."""
    with gr.Row():
        with gr.Column(scale=4, min_width=300):
            prompt = parts.prompt_box("prompt")
            run_and_stop = parts.run_and_stop("generate")
            with gr.Accordion("Settings", open=False, elem_id="settings"):
                fields = settings(page, allow_any_model)
        with gr.Column(scale=6, min_width=300):
            gallery = parts.pictures("generate")
            status = gr.HTML(label="Status", elem_id="status")
            findings = gr.HTML(label="What the verifier sees", elem_id="findings")
            with gr.Row():
                to_optimize = gr.Button("Optimize its noise", size="sm", min_width=120)
                to_compare = gr.Button("Compare methods", size="sm", min_width=120)
                to_nar = gr.Button("Outpaint with NAR", size="sm", min_width=120)
    gr.Examples([[text] for text in parts.EXAMPLES], prompt, label="Examples")
    command = parts.command_box("generate")
    parts.on_run(
        "generate", run_and_stop, prompt, handlers.make_generate(allow_any_model),
        [prompt, *fields.values()], [gallery, fields["seed"], status, findings, command],
        shown=gallery, status=status,
    )  # fmt: skip
    buttons = {"optimize": to_optimize, "compare": to_compare, "nar": to_nar}
    return {"prompt": prompt, **fields, "gallery": gallery, "buttons": buttons}


def settings(page: gr.Blocks, allow_any_model: bool) -> dict:
    """The settings, in the order of the handler's arguments."""
    own_size = "0: the model's own"
    steps, guidance = choices.DEFAULTS["embedded"]
    negative = gr.Textbox(
        "", label="Negative prompt", placeholder="what the picture should not show", lines=1
    )
    model, lora = parts.model_and_lora(page, "generate", allow_any_model)
    seed, randomize = parts.seed_row("generate")
    num_steps = gr.Slider(1, 100, steps, step=1, label="Steps", elem_id="steps")
    scale = gr.Slider(0, 20, guidance, step=0.5, label="Guidance", elem_id="guidance")
    count = gr.Slider(1, 8, 4, step=1, label="Number of images", elem_id="count")
    with gr.Row():
        width = gr.Number(0, label="Width", info=own_size, precision=0, min_width=120)
        height = gr.Number(0, label="Height", info=own_size, precision=0, min_width=120)
    # `input`, not `change`: the page's own start must not undo what a visitor has already set
    model.input(handlers.model_defaults, model, [num_steps, scale, lora], **QUIET)
    return {
        "negative": negative, "model": model, "lora": lora, "seed": seed, "randomize": randomize,
        "steps": num_steps, "guidance": scale, "images": count, "width": width, "height": height,
    }  # fmt: skip
