"""The settings of `align nar align`. Standard library only; import it from `align.nar.config`."""

from dataclasses import dataclass
from typing import Literal

from align.checks import check, imply_out


@dataclass(frozen=True, kw_only=True)
class NarAlignConfig:
    """Raise a reward by policy gradients (GRPO) or by preferences (DPO) on exact probabilities."""

    model: str = "embedded/nar-scenes"
    """embedded/NAME, a NAR pipeline's folder or a Hub id."""
    method: Literal["grpo", "dpo"] = "grpo"
    """grpo compares the images of a prompt's group; dpo prefers the best of them to the worst."""
    reward: str = "scenes-clip"
    """What to maximize: NAME[:ARGUMENT][=WEIGHT], joined by commas; needs no gradient."""
    prompts: str | None = None
    """A built-in prompt set or a file (default with embedded models: scenes)."""
    lora: tuple[str, ...] = ()
    """Start from this LoRA (a file, folder, run or Hub id), optionally =WEIGHT."""
    steps: int = 100
    """Updates, each on images of its own."""
    batch_size: int = 32
    """Images per update, over all processes."""
    group_size: int = 8
    """Images of a prompt in an update, which are compared with each other."""
    micro_batch_size: int | None = 16
    """Images per forward pass with gradient."""
    normalize_std: bool = True
    """Divide a group's advantages by its standard deviation (grpo)."""
    kl_weight: float = 0.01
    """Weight of the divergence from the base model, in nats per token (grpo)."""
    beta: float = 0.1
    """Strength of the tie to the base model (dpo)."""
    temperature: float = 1.0
    """Of the policy: images are drawn, and their probabilities taken, at this temperature."""
    guidance_scale: float = 1.0
    """Of the policy: from 1 on its probabilities are those of the guided mixture, which takes twice
    the time; 1 is no guidance."""
    learning_rate: float = 3e-4
    """Peak learning rate (AdamW)."""
    weight_decay: float = 1e-4
    """Decoupled weight decay."""
    lr_schedule: Literal["constant", "linear", "cosine"] = "constant"
    """Course of the learning rate after the warm-up."""
    warmup_steps: int = 0
    """Updates over which the learning rate rises from 0."""
    max_grad_norm: float = 1.0
    """Gradients are clipped to this L2 norm; 0 leaves them."""
    lora_rank: int = 8
    """Rank of the LoRA."""
    lora_alpha: float | None = None
    """Scale of the LoRA, as alpha / rank (default: the rank)."""
    lora_targets: tuple[str, ...] | None = None
    """Layers that get a LoRA, by the end of their names (default: attention and feed-forward)."""
    judge: str | None = None
    """Judge held-out images by this expression; the best LoRA is kept as lora-best."""
    judge_prompts: str | None = None
    """Prompts of the judge (default with embedded models: scenes-heldout-a)."""
    judge_images: int = 48
    """Images of a judgment, two per prompt."""
    judge_every: int = 10
    """Updates between two judgments."""
    patience: int | None = None
    """Stop after this many judgments without a new best."""
    sample_every: int = 25
    """Updates between two image grids; 0 draws only the first and the last."""
    checkpoint_every: int = 25
    """Updates between two checkpoints; 0 writes only the last."""
    keep_checkpoints: int = 2
    """How many checkpoints stay on disk."""
    max_minutes: float | None = None
    """Stop, save and end well after this many minutes."""
    seed: int = 0
    """Prompts and images depend on it, the update and the image's index alone."""
    device: str | None = None
    """cpu, cuda or cuda:1 (default: the best one present)."""
    mixed_precision: Literal["no", "bf16"] | None = None
    """Of drawing and of probabilities: no or bf16 (default: bf16 where it is faster)."""
    tracker: Literal["tensorboard", "wandb", "trackio", "none"] = "tensorboard"
    """Where curves go beside metrics.jsonl."""
    push_to_hub: str | None = None
    """Upload the LoRA to this Hub id at the end."""
    out: str | None = None
    """The run's folder (default: runs/COMMAND-TIME)."""
    resume: str | None = None
    """Continue the run in this folder, bit-exactly."""
    overwrite: bool = False
    """Replace a run folder that is not empty."""

    def __post_init__(self) -> None:
        """Raise ValueError where a value is out of range."""
        counts = ("steps", "batch_size", "micro_batch_size", "lora_rank")
        check(self, at_least_1=(*counts, "judge_every", "judge_images", "patience"))
        check(self, at_least_1=("keep_checkpoints", "guidance_scale"))
        check(
            self,
            positive=("learning_rate", "lora_alpha", "max_minutes", "beta", "temperature"),
            not_negative=("kl_weight", "weight_decay", "warmup_steps", "max_grad_norm"),
        )
        check(self, not_negative=("sample_every", "checkpoint_every"))
        if self.group_size < 2:
            raise ValueError(
                f"group_size is {self.group_size}; it must be at least 2, as the images of a "
                "prompt are compared with each other"
            )
        if self.batch_size % self.group_size:
            raise ValueError(
                f"batch_size is {self.batch_size}; it must be a multiple of group_size, which is "
                f"{self.group_size}"
            )
        if self.lora_targets == ():
            raise ValueError("lora_targets is empty; name at least one layer, such as qkv")
        imply_out(self)
