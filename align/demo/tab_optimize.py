"""The Optimize noise tab: the best so far beside the first picture, curves, the path."""

import gradio as gr

from align.demo import optimize_handler as handler
from align.demo import parts


def build(page: gr.Blocks, allow_any_model: bool) -> dict:
    """Lay the tab out; returns its fields by their names in links."""
    gr.Markdown(
        "A picture is decided by its prompt and by the noise it starts from. This searches the "
        "noise whose picture the rewards like best; the model stays as it is."
    )
    with gr.Row():
        with gr.Column(scale=4, min_width=300):
            prompt = parts.prompt_box("optimize-prompt")
            run_and_stop = parts.run_and_stop("optimize")
            reward = parts.reward_box("optimize", allow_any_model)
            method = gr.Dropdown(
                handler.method_choices(), value="carinox", label="Method", elem_id="optimize-method"
            )
            budget = gr.Slider(
                *handler.BUDGET, 32, step=1, label="Budget (images)", elem_id="optimize-budget"
            )
            with gr.Accordion("Settings", open=False, elem_id="optimize-settings"):
                weights = gr.Radio(
                    [("by the prompt's category", "category"), ("as written", "uniform")],
                    value="category",
                    label="Weights of the rewards",
                    elem_id="optimize-weights",
                )
                model, lora = parts.model_and_lora(page, "optimize", allow_any_model)
                seed, randomize = parts.seed_row("optimize")
                steps = gr.Slider(
                    *handler.STEPS, 8, step=1, label="Steps", elem_id="optimize-steps"
                )
                guidance = gr.Slider(
                    0, 20, 3, step=0.5, label="Guidance", elem_id="optimize-guidance"
                )
        with gr.Column(scale=6, min_width=300):
            shown = outputs()
    command = parts.command_box("optimize")
    fields = {
        "prompt": prompt, "reward": reward, "weights": weights, "method": method,
        "budget": budget, "model": model, "lora": lora, "seed": seed, "randomize": randomize,
        "steps": steps, "guidance": guidance,
    }  # fmt: skip
    buttons = {"generate": shown.pop("generate"), "compare": shown.pop("compare")}
    facts = shown.pop("facts")
    parts.on_run(
        "optimize", run_and_stop, prompt, handler.make_optimize(allow_any_model),
        [*fields.values()], [*shown.values(), seed, command, facts],
        shown=shown["best"], status=shown["status"],
    )  # fmt: skip
    return {**fields, "buttons": buttons}


def outputs() -> dict:
    """What the search shows, in the order of the handler's outputs; then the buttons, and facts."""
    look = {
        "format": "png",
        "interactive": False,
        "buttons": ["download", "fullscreen"],
        "height": 280,
        "elem_classes": "picture",
    }
    with gr.Row():
        best = gr.Image(
            label="Best so far", alt_text="Best so far", elem_id="optimize-best",
            min_width=140, **look,
        )  # fmt: skip
        initial = gr.Image(
            label="First picture", alt_text="First picture", elem_id="optimize-initial",
            min_width=140, **look,
        )  # fmt: skip
    status = gr.HTML(label="Status", elem_id="optimize-status")
    facts = gr.HTML(label="Fact by fact", elem_id="optimize-facts")
    curves = gr.HTML(label="Gain of each reward", elem_id="optimize-curves")
    path = parts.pictures("optimize", "The path: every new best, with its score", columns=4)
    explained = gr.HTML(label="Why these weights", elem_id="optimize-explained")
    with gr.Row():
        noise = gr.DownloadButton(
            "Download the noise", interactive=False, size="sm", min_width=120,
            elem_id="optimize-noise",
        )  # fmt: skip
        generate = gr.Button("Generate with its seed", size="sm", min_width=120)
        compare = gr.Button("Compare methods", size="sm", min_width=120)
    return {
        "best": best, "initial": initial, "path": path, "curves": curves, "status": status,
        "explained": explained, "noise": noise, "generate": generate, "compare": compare,
        "facts": facts,
    }  # fmt: skip
