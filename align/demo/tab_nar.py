"""The NAR tab: pictures wavefront by wavefront, outpainting, and the speed beside raster order."""

import functools

import gradio as gr

from align.demo import nar_handler as handler
from align.demo import parts
from align.demo.choices import nar_clip_models, nar_defaults, nar_models
from align.demo.parts import QUIET

CLIP_EXAMPLE = "a red circle moving right"


def build(page: gr.Blocks, allow_any_model: bool) -> dict:
    """Lay the tab out; returns its fields by their names in links."""
    known = [*nar_models(), *nar_clip_models()]
    gr.Markdown(
        "Neighboring autoregression draws a picture as a grid of tokens, from the upper left "
        "corner outwards: all tokens of a diagonal wavefront in one pass of the model."
        + ("" if known else " **The embedded NAR model is not installed here.**")
    )
    with gr.Row():
        with gr.Column(scale=4, min_width=300):
            prompt = parts.prompt_box("nar-prompt")
            buttons = parts.run_and_stop("nar")
            count = gr.Slider(
                *handler.IMAGES, 4, step=1, label="Number of images", elem_id="nar-count"
            )
            compare = gr.Checkbox(
                True, label="Measure raster order beside it", elem_id="nar-compare"
            )
            with gr.Accordion("Continue a picture", open=False, elem_id="nar-outpaint"):
                picture = gr.Image(
                    label="Picture whose upper left corner is kept",
                    sources=["upload", "clipboard"],
                    type="filepath",
                    interactive=True,  # it is no handler's input: else only shown
                    format="png",
                    height=200,
                    elem_id="nar-picture",
                )
                share = gr.Slider(
                    0.1, 0.9, 0.5, step=0.05, label="Share of each side that is kept",
                    elem_id="nar-share",
                )  # fmt: skip
            with gr.Accordion("Settings", open=False, elem_id="nar-settings"):
                fields = settings(page, known, allow_any_model)
        with gr.Column(scale=6, min_width=300):
            gallery = parts.pictures("nar")
            status = gr.HTML(label="Status", elem_id="nar-status")
            findings = gr.HTML(label="What the verifier sees", elem_id="nar-findings")
            with gr.Row():
                to_compare = gr.Button("Compare methods", size="sm", min_width=120)
    command = parts.command_box("nar")
    sent = gr.Textbox("", label="Picture", visible=False)
    parts.on_run(
        "nar", buttons, prompt, handler.make_nar(allow_any_model),
        [prompt, *fields.values(), count, compare, sent, share],
        [gallery, fields["seed"], status, findings, command],
        shown=gallery, status=status, sent="startedWithPicture",
    )  # fmt: skip
    own = [fields["guidance"], fields["temperature"]]
    model, lora = fields["model"], fields["lora"]
    model.input(handler.model_defaults, model, [*own, lora], **QUIET)
    lora.input(
        functools.partial(handler.lora_settings, allow_any_model=allow_any_model),
        [model, lora], [*own, fields["top_k"], fields["top_p"]], **QUIET,
    )  # fmt: skip
    if nar_models() and nar_clip_models():
        picture_model, clip_model = nar_models()[0], nar_clip_models()[0]
        gr.Examples(
            [
                [parts.EXAMPLES[0], picture_model, *nar_defaults(picture_model)],
                [CLIP_EXAMPLE, clip_model, *nar_defaults(clip_model)],
            ],
            [prompt, fields["model"], *own],
            label="A picture, and a clip",
        )
    return {
        "prompt": prompt, **fields, "images": count, "picture": picture,
        "buttons": {"compare": to_compare},
    }  # fmt: skip


def settings(page: gr.Blocks, known: list[str], allow_any_model: bool) -> dict:
    """The settings, in the order of the handler's arguments."""
    model, lora = parts.model_and_lora(page, "nar", allow_any_model, known)
    seed, randomize = parts.seed_row("nar")
    guidance, temperature = nar_defaults(known[0] if known else "")
    return {
        "model": model,
        "lora": lora,
        "seed": seed,
        "randomize": randomize,
        "guidance": gr.Slider(
            1, 20, guidance, step=0.1, label="Guidance", elem_id="nar-guidance"
        ),
        "temperature": gr.Slider(
            0, 5, temperature, step=0.05, label="Temperature", info="0 takes the likeliest token",
            elem_id="nar-temperature",
        ),
        "top_k": gr.Number(
            0, label="Top-k", info="0 keeps every token", precision=0, minimum=0, maximum=100_000,
            elem_id="nar-top-k",
        ),
        "top_p": gr.Slider(0.01, 1, 1, step=0.01, label="Top-p", elem_id="nar-top-p"),
    }  # fmt: skip
