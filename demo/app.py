"""The page: what stands where, and which handler answers to what. Each tab is one function."""

import gradio as gr

from align.demo import handlers, values

FONT = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"]
MONO = ["ui-monospace", "SF Mono", "Consolas", "monospace"]
THEME = gr.themes.Default(
    primary_hue="blue", neutral_hue="slate", font=FONT, font_mono=MONO
).set(  # dark enough to be read by everybody (WCAG AA)
    button_primary_background_fill="*primary_600",
    button_primary_background_fill_hover="*primary_700",
    block_info_text_color="*neutral_600",
    block_info_text_color_dark="*neutral_300",
    input_placeholder_color="*neutral_500",
    input_placeholder_color_dark="*neutral_400",
)
CSS = """
.gradio-container { max-width: 1180px !important; margin: 0 auto !important; }
#gallery .grid-wrap { min-height: 0; max-height: none; overflow: visible; padding-top: 2.2rem; }
@media (min-width: 700px) { /* more than four pictures: four in a row */
  #gallery .grid-container:has(> :nth-child(5)) { grid-template-columns: repeat(4, 1fr); }
}
.status p, .findings p, .findings ul { margin: 0 0 .35rem; }
.status progress { appearance: none; width: 100%; height: .5rem; border: 0; border-radius: 4px;
  overflow: hidden; background: var(--neutral-300); }
.status progress::-webkit-progress-bar { background: var(--neutral-300); }
.status progress::-webkit-progress-value { background: var(--primary-500); }
.status progress::-moz-progress-bar { background: var(--primary-500); }
.status .warning { color: var(--body-text-color); }
.findings ul { list-style: none; padding: 0; }
.findings .good b { color: #15803d; }
.findings .bad b { color: #b91c1c; }
.dark .findings .good b { color: #4ade80; }
.dark .findings .bad b { color: #fca5a5; }
"""
APPEARANCE = {"theme": THEME, "css": CSS}  # for `launch`
EXAMPLES = [
    "a red circle to the left of a blue square",
    "three green stars",
    "a large striped yellow square",
    "a yellow star covering an orange ring",
    "a small black circle and a large orange star",
]
# The browser names each run; Stop sends the name, and the run itself says "Stopped." as it ends.
STARTED = """(...inputs) => {
  const run = `${Date.now()}-${Math.random()}`;
  document.getElementById('status').dataset.run = run;
  return [...inputs.slice(0, -1), run];
}"""
STOP = "() => document.getElementById('status').dataset.run ?? ''"
GPU = {"concurrency_id": "gpu", "concurrency_limit": 1}  # one computation at a time


def build(allow_any_model: bool = False) -> gr.Blocks:
    """The demo's page; launch it with `APPEARANCE`.

    With `allow_any_model` visitors may name folders of this machine and Hub ids.
    """
    with gr.Blocks(title="align", analytics_enabled=False, delete_cache=(600, 3600)) as page:
        gr.Markdown(
            "# align\nAlign text-to-image models with rewards. The small models here know a world "
            "of coloured shapes: circles, squares, triangles, stars, crosses and rings."
        )
        with gr.Tab("Generate", id="generate"):
            generate_tab(page, allow_any_model)
    return page


def generate_tab(page: gr.Blocks, allow_any_model: bool) -> None:
    """Pictures of a prompt, with a live preview."""
    with gr.Row():
        with gr.Column(scale=4, min_width=300):
            prompt = gr.Textbox(
                EXAMPLES[0],
                label="Prompt",
                lines=1,
                max_lines=4,
                max_length=values.PROMPT_LENGTH,
                elem_id="prompt",
            )
            with gr.Row():
                run = gr.Button("Run", variant="primary", elem_id="run", min_width=100)
                stop = gr.Button("Stop", elem_id="stop", min_width=100)
            with gr.Accordion("Settings", open=False, elem_id="settings"):
                settings = generate_settings(page, allow_any_model)
        with gr.Column(scale=6, min_width=300):
            gallery = gr.Gallery(
                label="Pictures",
                format="png",
                columns=2,
                object_fit="contain",
                height="auto",
                interactive=False,
                buttons=["download", "download_all", "fullscreen"],
                elem_id="gallery",
            )
            status = gr.HTML(label="Status", elem_id="status")
            findings = gr.HTML(label="What the verifier sees", elem_id="findings")
    gr.Examples([[text] for text in EXAMPLES], prompt, label="Examples")
    with gr.Accordion("The same on the command line", open=False):
        command = gr.Textbox(
            label="Command", lines=2, interactive=False, buttons=["copy"], elem_id="command"
        )
    seed = settings[3]
    name = gr.Textbox("", label="Name of the run", visible=False)
    gr.on(
        [run.click, prompt.submit],
        handlers.make_generate(allow_any_model),
        [prompt, *settings, name],
        [gallery, seed, status, findings, command],
        api_name="generate",
        preprocess=False,  # the handler checks the values themselves
        js=STARTED,
        show_progress_on=gallery,
        trigger_mode="once",
        **GPU,
    )
    stop.click(handlers.stop, name, None, js=STOP, queue=False, api_visibility="private")


def generate_settings(page: gr.Blocks, allow_any_model: bool) -> list[gr.components.Component]:
    """The settings of the Generate tab, in the order of its handler's arguments."""
    known, own_size = handlers.models(), "0: the model's own"
    steps, guidance = handlers.DEFAULTS["embedded"]
    negative = gr.Textbox(
        "", label="Negative prompt", placeholder="what the picture should not show", lines=1
    )
    model = gr.Dropdown(
        known,
        value=known[0] if known else None,
        label="Model",
        allow_custom_value=allow_any_model,
        info="One of these, a folder, or a Hub id" if allow_any_model else None,
        elem_id="model",
    )
    lora = gr.Dropdown(
        handlers.loras(known[0] if known else None),
        value=handlers.NO_LORA,
        label="LoRA",
        allow_custom_value=allow_any_model,
        info="Trained ones appear here by themselves",
        elem_id="lora",
    )
    with gr.Row():
        seed = gr.Number(
            0, label="Seed", precision=0, minimum=0, maximum=values.MAX_SEED, elem_id="seed"
        )
        randomize = gr.Checkbox(True, label="Randomize seed", elem_id="randomize")
    num_steps = gr.Slider(1, 100, steps, step=1, label="Steps", elem_id="steps")
    scale = gr.Slider(0, 20, guidance, step=0.5, label="Guidance", elem_id="guidance")
    count = gr.Slider(1, 8, 4, step=1, label="Number of images", elem_id="count")
    with gr.Row():
        width = gr.Number(0, label="Width", info=own_size, precision=0, min_width=120)
        height = gr.Number(0, label="Height", info=own_size, precision=0, min_width=120)
    picked = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
    # `input`, not `change`: the page's own start must not undo what a visitor has already set
    model.input(handlers.model_defaults, model, [num_steps, scale, lora], **picked)
    gr.on([page.load, lora.focus], handlers.lora_choices, [model, lora], lora, **picked)
    return [negative, model, lora, seed, randomize, num_steps, scale, count, width, height]
