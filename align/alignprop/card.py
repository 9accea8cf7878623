"""The model card of a LoRA that `align train` trained."""

from pathlib import Path
from typing import Any

from align.config.train import METHODS, TrainConfig
from align.training import report as reports


def model_card(config: TrainConfig, report: dict[str, Any]) -> str:
    """How to load the LoRA, its training and figures, in Markdown."""
    c = config
    on_hub = not c.model.startswith(("embedded/", ".", "/", "~")) and c.model.count("/") == 1
    method = METHODS[c.method]
    title = f"A LoRA of {Path(c.pairs).name}" if c.pairs else f"A LoRA that raises {c.reward}"
    own = {name.replace("_", " "): getattr(c, name) for name in method.settings}
    return reports.model_card(
        c,
        report,
        title=title,
        how=method.does,
        code=(
            f'pipe = DiffusionPipeline.from_pretrained("{c.model}")',
            f'pipe.load_lora_weights("{c.push_to_hub or "path/to/this/folder"}")',
        ),
        settings={
            "images per update": c.batch_size,
            "sampling": f"{report['scheduler']}, {c.num_inference_steps} steps, "
            f"guidance {c.guidance_scale:g}" + (f", eta {c.eta:g}" if c.eta else ""),
            **own,
            "distance to the base": f"weight {c.kl_weight:g}",
        },
        front=[f"base_model: {c.model}"] if on_hub else [],
    )
