"""The Align tab: a LoRA trained in the background, seen by every visitor."""

import gradio as gr

from align.demo import align_handler as handler
from align.demo import parts
from align.demo.choices import models
from align.demo.parts import QUIET

EVERY = 2  # seconds between two looks at the training
# A key of the browser's own, kept over reloads: who started a training can stop it.
KEY = """
  let key = '';
  try {
    key = localStorage.getItem('align-owner') ?? '';
    if (!key) {
      key = [...crypto.getRandomValues(new Uint8Array(16))].map((b) => b.toString(16)).join('-');
      localStorage.setItem('align-owner', key);
    }
  } catch { /* no storage: no one can stop it before its time */ }
"""
START = f"(...inputs) => {{ {KEY} return [...inputs.slice(0, -1), key]; }}"
STOP = f"() => {{ {KEY} return key; }}"


def build(page: gr.Blocks, allow_any_model: bool) -> dict:
    """Lay the tab out; returns its fields by their names in links."""
    gr.Markdown(
        "AlignProp trains a LoRA by sending the reward's gradient back through the sampler. A "
        "style that all prompts share shows within three minutes. The training goes on in the "
        "background: you may close the page. One at a time."
    )
    with gr.Row():
        with gr.Column(scale=4, min_width=300):
            run, stop = parts.run_and_stop("align", "Train")
            fields = inputs(allow_any_model)
        with gr.Column(scale=6, min_width=300):
            shown = outputs()
    command = parts.command_box("align")
    buttons = {"generate": shown.pop("generate"), "compare": shown.pop("compare")}
    owner = gr.Textbox("", label="Key of the browser", visible=False)
    mark = gr.State(None)
    view = [*shown.values(), mark]
    run.click(
        handler.make_train(allow_any_model),
        [*fields.values(), owner],
        [*view, command],
        api_name="train",
        preprocess=False,
        js=START,
        show_progress="hidden",
        concurrency_id="train",
        concurrency_limit=1,
    )
    stop.click(
        handler.stop,
        owner,
        view,
        js=STOP,
        api_name="stop_training",
        show_progress="hidden",
        concurrency_limit=None,  # in the queue though it never waits: else no refusal is shown
    )
    gr.on([page.load, gr.Timer(EVERY).tick], handler.show, mark, view, **QUIET)
    asked = gr.Button("Look now", visible=False)
    asked.click(handler.show, None, view, api_name="training", queue=False)
    return {**fields, "buttons": buttons}


def inputs(allow_any_model: bool) -> dict:
    """What is trained, in the order of the handler's arguments."""
    style = ("a style: large, apart, full colours", handler.STYLE["reward"])
    reward = parts.reward_box("align", allow_any_model, style)
    prompts = gr.Dropdown(
        [(text, name) for name, text in handler.SETS.items()],
        value="scenes",
        label="Prompts",
        elem_id="align-prompts",
    )
    own = gr.Textbox(
        "", label="My own prompts, one a line", lines=3, max_lines=8, visible=False,
        elem_id="align-own",
    )  # fmt: skip
    prompts.input(lambda chosen: gr.update(visible=chosen == handler.OWN), prompts, own, **QUIET)
    minutes = gr.Slider(
        *handler.MINUTES, 3, step=0.1, label="Minutes at most", elem_id="align-minutes"
    )
    with gr.Accordion("Settings", open=False, elem_id="align-settings"):
        updates = gr.Slider(
            *handler.UPDATES,
            handler.STYLE["steps"],
            step=1,
            label="Updates at most",
            elem_id="align-updates",
        )
        rate = gr.Number(
            handler.STYLE["learning_rate"], label="Learning rate", minimum=1e-6, maximum=1e-2,
            step=1e-4, elem_id="align-rate",
        )  # fmt: skip
        known = models()
        model = gr.Dropdown(
            known,
            value=known[0] if known else None,
            label="Model",
            allow_custom_value=allow_any_model,
            elem_id="align-model",
        )
        seed = gr.Number(0, label="Seed", precision=0, minimum=0, elem_id="align-seed")
    return {
        "reward": reward, "prompts": prompts, "own": own, "minutes": minutes,
        "updates": updates, "rate": rate, "model": model, "seed": seed,
    }  # fmt: skip


def outputs() -> dict:
    """What is seen of a training, in the order of the handler's outputs; then the buttons."""
    look = {
        "format": "png",
        "interactive": False,
        "buttons": ["download", "fullscreen"],
        "elem_classes": "picture",
    }
    status = gr.HTML(label="Status", elem_id="align-status")
    curves = gr.HTML(label="Reward of each update", elem_id="align-curves")
    judged = gr.HTML(label="Held-out judge", elem_id="align-judge")
    with gr.Row():
        before = gr.Image(
            label="Before", alt_text="Eight pictures before the training",
            elem_id="align-before", min_width=140, **look,
        )  # fmt: skip
        latest = gr.Image(
            label="Newest, same noises", alt_text="The same pictures by the newest LoRA",
            elem_id="align-latest", min_width=140, **look,
        )  # fmt: skip
    seen = gr.HTML(label="What a reader sees in them", elem_id="align-seen")
    with gr.Row():
        lora = gr.DownloadButton(
            "Download the LoRA", interactive=False, size="sm", min_width=120, elem_id="align-lora"
        )
        generate = gr.Button("Generate with it", size="sm", min_width=120)
        compare = gr.Button("Compare with the base", size="sm", min_width=120)
    return {
        "status": status, "curves": curves, "judged": judged, "before": before,
        "latest": latest, "seen": seen, "lora": lora, "generate": generate, "compare": compare,
    }  # fmt: skip
