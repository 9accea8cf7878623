"""The model card of a LoRA that `align train` trained."""

from typing import Any

from align.config.train import TrainConfig
from align.training import report as reports

METHODS = {
    "alignprop": "AlignProp (arXiv 2310.03739): the reward is backpropagated through the sampler",
    "dpo": "Diffusion-DPO (arXiv 2311.12908) on its own images: of those of a prompt, the best by "
    "the reward are preferred to the worst",
}


def model_card(config: TrainConfig, report: dict[str, Any]) -> str:
    """How to load the LoRA, its training and figures, in Markdown."""
    c = config
    on_hub = not c.model.startswith(("embedded/", ".", "/", "~")) and c.model.count("/") == 1
    compared = {"images compared": c.group_size, "timesteps a pair": c.pair_timesteps}
    by_gradient = {"gradient window": c.grad_window}
    return reports.model_card(
        c,
        report,
        title=f"A LoRA that raises {c.reward}",
        how=METHODS[c.method],
        code=(
            f'pipe = DiffusionPipeline.from_pretrained("{c.model}")',
            f'pipe.load_lora_weights("{c.push_to_hub or "path/to/this/folder"}")',
        ),
        settings={
            "images per update": c.batch_size,
            "sampling": f"{report['scheduler']}, {c.num_inference_steps} steps, "
            f"guidance {c.guidance_scale:g}" + (f", eta {c.eta:g}" if c.eta else ""),
            **(by_gradient if c.method == "alignprop" else {**compared, "beta": c.beta}),
            "distance to the base": f"weight {c.kl_weight:g}",
        },
        front=[f"base_model: {c.model}"] if on_hub else [],
    )
