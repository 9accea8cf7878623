"""What the tabs share: appearance, the browser's part, and pieces of layout."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from align.demo import handlers, values
from align.demo.choices import NO_LORA, expressions, loras, models
from align.demo.streaming import stop as stop_run

FONT = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"]
MONO = ["ui-monospace", "SF Mono", "Consolas", "monospace"]
THEME = gr.themes.Default(
    primary_hue="blue", neutral_hue="slate", font=FONT, font_mono=MONO
).set(  # dark enough to be read by everybody (WCAG AA)
    button_primary_background_fill="*primary_600",
    button_primary_background_fill_hover="*primary_700",
    block_info_text_color="*neutral_600",
    block_info_text_color_dark="*neutral_300",
    body_text_color_subdued="*neutral_600",
    body_text_color_subdued_dark="*neutral_300",
    link_text_color_dark="*primary_300",
    input_placeholder_color="*neutral_500",
    input_placeholder_color_dark="*neutral_400",
)
HERE = Path(__file__).parent
APPEARANCE = {  # for `launch`
    "theme": THEME,
    "css": (HERE / "page.css").read_text(encoding="utf-8"),
    "head": f"<script>\n{(HERE / 'page.js').read_text(encoding='utf-8')}</script>",
}
GPU = {"concurrency_id": "gpu", "concurrency_limit": 1}  # one computation at a time
QUIET = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
EXAMPLES = [
    "a red circle to the left of a blue square",
    "three green stars",
    "a large striped yellow square",
    "a yellow star covering an orange ring",
    "a small black circle and a large orange star",
]


def prompt_box(name: str) -> gr.Textbox:
    """Where the prompt is written."""
    return gr.Textbox(
        EXAMPLES[0],
        label="Prompt",
        lines=1,
        max_lines=4,
        max_length=values.PROMPT_LENGTH,
        elem_id=name,
    )


def run_and_stop(tab: str, label: str = "Run") -> tuple[gr.Button, gr.Button]:
    """The two buttons of a tab."""
    with gr.Row():
        run = gr.Button(
            label, variant="primary", elem_id=f"{tab}-run", elem_classes="run", min_width=100
        )
        stop = gr.Button("Stop", elem_id=f"{tab}-stop", min_width=100)
    return run, stop


def on_run(
    tab: str,
    buttons: tuple[gr.Button, gr.Button],
    prompt: gr.Textbox,
    handler: Callable,
    inputs: Sequence[Any],
    outputs: Sequence[Any],
    *,
    shown: Any,
    status: gr.HTML,
    sent: str = "started",
) -> None:
    """Run, and Enter in the prompt, call a tab's handler, its endpoint; Stop ends that run.

    The browser names a run in the handler's last argument as it is sent (`page.js`, by the
    function `sent`), and Stop names it again. Progress is shown on the output `shown`.
    """
    run, stop = buttons
    name = gr.Textbox("", label="Name of the run", visible=False)
    gr.on(
        [run.click, prompt.submit],
        handler,
        [*inputs, name],
        outputs,
        api_name=tab,
        preprocess=False,  # the handler checks the values themselves
        js=f"(...inputs) => alignDemo.{sent}('{status.elem_id}', inputs)",
        show_progress_on=shown,
        trigger_mode="once",
        **GPU,
    )
    last = f"() => alignDemo.running('{status.elem_id}')"
    stop.click(stop_run, name, None, js=last, queue=False, api_visibility="private")


def pictures(tab: str, label: str = "Pictures", columns: int = 2) -> gr.Gallery:
    """A gallery whose pictures can be downloaded as they were written."""
    return gr.Gallery(
        label=label,
        format="png",
        columns=columns,
        object_fit="contain",
        height="auto",
        interactive=False,
        buttons=["download", "download_all", "fullscreen"],
        elem_id=f"{tab}-gallery" if tab != "generate" else "gallery",
        elem_classes="pictures",
    )


def model_and_lora(
    page: gr.Blocks, tab: str, allow_any_model: bool, known: list[str] | None = None
) -> tuple[gr.Dropdown, gr.Dropdown]:
    """Which model draws, of those known (default: diffusion models), and which LoRA is added."""
    known = models() if known is None else known
    model = gr.Dropdown(
        known,
        value=known[0] if known else None,
        label="Model",
        allow_custom_value=allow_any_model,
        info="One of these, a folder, or a Hub id" if allow_any_model else None,
        elem_id=f"{tab}-model",
    )
    lora = gr.Dropdown(
        loras(known[0] if known else None),
        value=NO_LORA,
        label="LoRA",
        allow_custom_value=allow_any_model,
        info="Trained ones appear here by themselves",
        elem_id=f"{tab}-lora",
    )
    gr.on([page.load, lora.focus], handlers.lora_choices, [model, lora], lora, **QUIET)
    return model, lora


def seed_row(tab: str) -> tuple[gr.Number, gr.Checkbox]:
    """The seed, and whether to draw another one."""
    with gr.Row():
        seed = gr.Number(
            0, label="Seed", precision=0, minimum=0, maximum=values.MAX_SEED, elem_id=f"{tab}-seed"
        )
        randomize = gr.Checkbox(True, label="Randomize seed", elem_id=f"{tab}-randomize")
    return seed, randomize


def reward_box(
    tab: str, allow_any_model: bool, first: tuple[str, str] | None = None
) -> gr.Dropdown:
    """Which reward counts: a ready-made expression, or one's own. `first` is (what it is, an
    expression) that the tab begins with."""
    ready = [
        (f"{text} (what searches take)" if "," in text else text, text) for text in expressions()
    ]
    if first is not None:
        ready.insert(0, (f"{first[1]} ({first[0]})", first[1]))
    more = ", or a file: rewards.py:function" if allow_any_model else ""
    return gr.Dropdown(
        ready,
        value=ready[0][1] if ready else None,
        label="Reward",
        allow_custom_value=True,
        info=f"Choose one, or write several with weights: scenes-clip=1,scenes-vqa=0.5{more}",
        elem_id=f"{tab}-reward",
    )


def command_box(tab: str) -> gr.Textbox:
    """The command that does the same."""
    with gr.Accordion("The same on the command line", open=False):
        return gr.Textbox(
            label="Command", lines=2, interactive=False, buttons=["copy"], elem_id=f"{tab}-command"
        )


def send(
    button: gr.Button,
    tabs: gr.Tabs,
    tab: str,
    sources: Sequence[Any],
    targets: Sequence[Any],
    change: Callable[..., Sequence[Any]] | None = None,
) -> None:
    """Let a button copy values into another tab's fields and open it."""

    def sent(*given: Any) -> tuple:
        return gr.Tabs(selected=tab), *(change(*given) if change else given)

    button.click(sent, list(sources), [tabs, *targets], **QUIET)


def with_choice(lora: Any) -> Any:
    """A LoRA for a list that may not know it yet."""
    return gr.update(choices=loras(), value=lora if isinstance(lora, str) else NO_LORA)
