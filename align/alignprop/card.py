"""The model card of a LoRA that `align train` trained."""

from pathlib import Path
from typing import Any

from align.config.train import TrainConfig
from align.training import report as reports

METHODS = {
    "alignprop": "AlignProp (arXiv 2310.03739): the reward is backpropagated through the sampler",
    "dpo": "Diffusion-DPO (arXiv 2311.12908) on its own images: of those of a prompt, the best by "
    "the reward are preferred to the worst",
    "nft": "DiffusionNFT (arXiv 2509.16117) on its own images, weighed by their advantage in the "
    "reward over others of their prompt",
    "sft": "plain denoising of chosen pictures",
}
PAIRS = "Diffusion-DPO (arXiv 2311.12908) on pairs of pictures, of which one was chosen"


def model_card(config: TrainConfig, report: dict[str, Any]) -> str:
    """How to load the LoRA, its training and figures, in Markdown."""
    c = config
    on_hub = not c.model.startswith(("embedded/", ".", "/", "~")) and c.model.count("/") == 1
    how = PAIRS if c.pairs and c.method == "dpo" else METHODS[c.method]
    title = f"A LoRA of {Path(c.pairs).name}" if c.pairs else f"A LoRA that raises {c.reward}"
    by = {
        "alignprop": {"gradient window": c.grad_window},
        "dpo": {"beta": c.beta},
        "nft": {"nft beta": c.nft_beta, "advantages by": c.advantage, "old policy": c.old_decay},
        "sft": {},
    }[c.method]
    if c.method != "alignprop":
        by = {"timesteps an image": c.pair_timesteps} | by
    if c.compares:
        by = {"images compared": c.group_size} | by
    return reports.model_card(
        c,
        report,
        title=title,
        how=how,
        code=(
            f'pipe = DiffusionPipeline.from_pretrained("{c.model}")',
            f'pipe.load_lora_weights("{c.push_to_hub or "path/to/this/folder"}")',
        ),
        settings={
            "images per update": c.batch_size,
            "sampling": f"{report['scheduler']}, {c.num_inference_steps} steps, "
            f"guidance {c.guidance_scale:g}" + (f", eta {c.eta:g}" if c.eta else ""),
            **by,
            "distance to the base": f"weight {c.kl_weight:g}",
        },
        front=[f"base_model: {c.model}"] if on_hub else [],
    )
