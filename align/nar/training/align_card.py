"""The model card of a LoRA that `align nar align` trained."""

from typing import Any

from align.config.nar import NarAlignConfig
from align.training.report import figures

METHODS = {
    "grpo": "policy gradients on groups of images (GRPO, arXiv 2402.03300)",
    "dpo": "preferences between the best and the worst image of a group (DPO, arXiv 2305.18290)",
}


def model_card(config: NarAlignConfig, report: dict[str, Any]) -> str:
    """How to load the LoRA, its training and figures, in Markdown."""
    c = config
    tie = f"KL weight {c.kl_weight:g}" if c.method == "grpo" else f"beta {c.beta:g}"
    settings = {
        "model": c.model,
        "reward": c.reward,
        "prompts": c.prompts or "the model's default set",
        "updates": report["steps"],
        "images per update": f"{c.batch_size} in groups of {c.group_size}",
        "learning rate": f"{c.learning_rate:g} ({c.lr_schedule})",
        "LoRA": f"rank {c.lora_rank}, alpha {c.lora_alpha or c.lora_rank:g}",
        "policy": f"temperature {c.temperature:g}, guidance {c.guidance_scale:g}, no truncation",
        "tie to the base": tie,
        "seed": c.seed,
    }
    lines = [
        *("---", "library_name: diffusers", "tags:", "- lora", "- text-to-image"),
        *("- reward-fine-tuning", "---", ""),
        f"# A NAR LoRA that raises {c.reward}",
        "",
        f"Trained from {c.model} with {METHODS[c.method]}, on exact log-probabilities.",
        "",
        "```python",
        "import align",
        "",
        f'pipe = align.nar.NARPipeline.from_pretrained("{c.model}")',
        f'pipe.load_lora("{c.push_to_hub or "path/to/this/folder"}")',
        f'pipe("a prompt", temperature={c.temperature:g}, guidance_scale={c.guidance_scale:g})',
        "```",
        "",
        "| setting | value |",
        "| --- | --- |",
        *(f"| {name} | {value} |" for name, value in settings.items()),
        "",
        "## Figures",
        "",
        *figures(report),
    ]
    return "\n".join(lines) + "\n"
