"""The Compare tab: one prompt by several methods at one budget, scored side by side."""

import gradio as gr

from align.demo import compare_handler as handler
from align.demo import parts


def build(page: gr.Blocks, allow_any_model: bool) -> dict:
    """Lay the tab out; returns its fields by their names in links."""
    gr.Markdown(
        "The same prompt and seed by several methods. Each may make as many images as the budget "
        "says and keeps the one that the reward likes best; base, LoRA and NAR make one."
    )
    with gr.Row():
        with gr.Column(scale=4, min_width=300):
            prompt = parts.prompt_box("compare-prompt")
            buttons = parts.run_and_stop("compare", "Compare")
            known = handler.methods()
            chosen = gr.CheckboxGroup(
                [(text, name) for name, text in known.items()],
                value=[name for name in known if name != "lora"],
                label="Methods",
                elem_id="compare-methods",
            )
            budget = gr.Slider(
                *handler.BUDGET, 8, step=1, label="Budget of each (images)",
                elem_id="compare-budget",
            )  # fmt: skip
            reward = parts.reward_box("compare", allow_any_model)
            with gr.Accordion("Settings", open=False, elem_id="compare-settings"):
                model, lora = parts.model_and_lora(page, "compare", allow_any_model)
                seed, randomize = parts.seed_row("compare")
                steps = gr.Slider(1, 50, 8, step=1, label="Steps", elem_id="compare-steps")
                guidance = gr.Slider(
                    1, 20, 3, step=0.5, label="Guidance", elem_id="compare-guidance"
                )
        with gr.Column(scale=6, min_width=300):
            gallery = parts.pictures("compare")
            status = gr.HTML(label="Status", elem_id="compare-status")
    table = gr.HTML(label="Scores by method", elem_id="compare-table")
    command = parts.command_box("compare")
    fields = {
        "prompt": prompt, "methods": chosen, "budget": budget, "reward": reward, "model": model,
        "lora": lora, "seed": seed, "randomize": randomize, "steps": steps, "guidance": guidance,
    }  # fmt: skip
    parts.on_run(
        "compare", buttons, prompt, handler.make_compare(allow_any_model), [*fields.values()],
        [gallery, table, status, seed, command], shown=gallery, status=status,
    )  # fmt: skip
    return fields
