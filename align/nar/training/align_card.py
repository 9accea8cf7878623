"""The model card of a LoRA that `align nar align` trained."""

from typing import Any

from align.config.nar import NarAlignConfig
from align.training import report as reports

METHODS = {
    "grpo": "policy gradients on groups of images (GRPO, arXiv 2402.03300)",
    "dpo": "preferences between the best and the worst image of a group (DPO, arXiv 2305.18290)",
}


def model_card(config: NarAlignConfig, report: dict[str, Any]) -> str:
    """How to load the LoRA, its training and figures, in Markdown."""
    c = config
    policy = f"temperature {c.temperature:g}, guidance {c.guidance_scale:g}, no truncation"
    return reports.model_card(
        c,
        report,
        title=f"A NAR LoRA that raises {c.reward}",
        how=f"{METHODS[c.method]}, on exact log-probabilities",
        code=(
            "import align",
            "",
            f'pipe = align.nar.NARPipeline.from_pretrained("{c.model}")',
            f'pipe.load_lora("{c.push_to_hub or "path/to/this/folder"}")',
            f'pipe("a prompt", temperature={c.temperature:g}, guidance_scale={c.guidance_scale:g})',
        ),
        settings={
            "images per update": f"{c.batch_size} in groups of {c.group_size}",
            "policy": policy,
            "tie to the base": f"KL weight {c.kl_weight:g}"
            if c.method == "grpo"
            else f"beta {c.beta:g}",
        },
    )
