"""What the tabs share: appearance, the browser's part, and pieces of layout."""

from collections.abc import Callable, Mapping, Sequence
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
CSS = """
.gradio-container { max-width: min(1180px, 100vw) !important; min-width: 0 !important;
  margin: 0 auto !important; }
/* gradio measures its tabs in a hidden row, which must not widen a phone's page */
.gradio-container .main, .gradio-container .wrap, .gradio-container main.contain,
main.contain > .column, #tabs, #tabs > .tab-wrapper { min-width: 0 !important; max-width: 100%; }
.pictures .grid-wrap { min-height: 0; max-height: none; overflow: visible; padding-top: 2.2rem; }
.picture .image-frame { padding-top: 2.1rem; }
.picture img { width: 100%; height: 100%; object-fit: contain; }
@media (min-width: 700px) { /* more than four pictures: four in a row */
  .pictures .grid-container:has(> :nth-child(5)) { grid-template-columns: repeat(4, 1fr); }
}
#tabs button[role=tab][aria-selected=true] { color: var(--primary-700); }
.dark #tabs button[role=tab][aria-selected=true] { color: var(--primary-300); }
.status p, .findings p, .findings ul { margin: 0 0 .35rem; }
.status progress { appearance: none; width: 100%; height: .5rem; border: 0; border-radius: 4px;
  overflow: hidden; background: var(--neutral-300); }
.status progress::-webkit-progress-bar { background: var(--neutral-300); }
.status progress::-webkit-progress-value { background: var(--primary-500); }
.status progress::-moz-progress-bar { background: var(--primary-500); }
.status .warning { color: var(--body-text-color); }
.status a { color: var(--link-text-color); text-decoration: underline; white-space: nowrap; }
.findings ul { list-style: none; padding: 0; }
.findings details { margin: .2rem 0 .5rem 1rem; font-variant-numeric: tabular-nums; }
.findings summary { cursor: pointer; }
.findings .good b { color: #15803d; }
.findings .bad b { color: #b91c1c; }
.dark .findings .good b { color: #4ade80; }
.dark .findings .bad b { color: #fca5a5; }
.findings.wide { overflow-x: auto; }
.findings table, .findings tr { border: 0 !important; }
.findings table { border-collapse: collapse; width: 100%; margin: .2rem 0 .6rem; }
.findings caption { text-align: left; font-weight: 600; padding: .3rem 0; }
.findings th, .findings td { text-align: left; padding: .3rem 1rem .3rem 0 !important;
  vertical-align: top; border: 0 !important; font-variant-numeric: tabular-nums;
  border-bottom: 1px solid var(--border-color-primary) !important; }
.curves svg { width: 100%; height: auto; }
.dark .curves svg { filter: invert(.88) hue-rotate(180deg); }
.findings thead th { font-weight: 600; white-space: nowrap; }
"""
# Ctrl-Enter runs the tab in view; a link to the settings is copied, and stands in the address bar.
# gradio labels its empty pictures but gives them no role, so that nobody reads the label.
HEAD = """<script>
new MutationObserver(() => {
  for (const empty of document.querySelectorAll('div.empty[aria-label]:not([role])')) {
    empty.setAttribute('role', 'img');
  }
}).observe(document.documentElement, {childList: true, subtree: true});
document.addEventListener('keydown', (event) => {
  if (!(event.ctrlKey || event.metaKey) || event.key !== 'Enter') return;
  const run = [...document.querySelectorAll('button.run')].find((one) => one.offsetParent);
  if (!run) return;
  event.preventDefault();
  event.stopPropagation();
  run.click();
}, true);
document.addEventListener('click', (event) => {
  const link = event.target.closest?.('a.permalink');
  if (!link || event.ctrlKey || event.metaKey || event.shiftKey) return;
  event.preventDefault();
  history.replaceState(null, '', link.href);
  navigator.clipboard?.writeText(link.href).catch(() => {});
  link.textContent = 'Copied; it is in the address bar too';
}, true);
</script>"""
APPEARANCE = {"theme": THEME, "css": CSS, "head": HEAD}  # for `launch`
GPU = {"concurrency_id": "gpu", "concurrency_limit": 1}  # one computation at a time
QUIET = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
EXAMPLES = [
    "a red circle to the left of a blue square",
    "three green stars",
    "a large striped yellow square",
    "a yellow star covering an orange ring",
    "a small black circle and a large orange star",
]


def started(status_id: str) -> str:
    """JavaScript that names a run as it is sent: Stop sends the name, and the run itself says
    "Stopped." as it ends."""
    return f"""(...inputs) => {{
      const run = `${{Date.now()}}-${{Math.random()}}`;
      document.getElementById('{status_id}').dataset.run = run;
      return [...inputs.slice(0, -1), run];
    }}"""


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


def wire_stop(stop: gr.Button, name: gr.Textbox, status_id: str) -> None:
    """Stop ends the run that this page has named last."""
    js = f"() => document.getElementById('{status_id}').dataset.run ?? ''"
    stop.click(stop_run, name, None, js=js, queue=False, api_visibility="private")


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


def reward_box(tab: str, allow_any_model: bool) -> gr.Dropdown:
    """Which reward counts: a ready-made expression, or one's own."""
    ready = expressions()
    more = ", or a file: rewards.py:function" if allow_any_model else ""
    return gr.Dropdown(
        [("all of the embedded rewards" if "," in text else text, text) for text in ready],
        value=ready[0] if ready else None,
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


Fields = Mapping[str, Any]
