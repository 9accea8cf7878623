"""The settings of `align nar convert`. Standard library only; import it from `align.nar.config`."""

from dataclasses import dataclass
from typing import Literal

from align.checks import check, imply_out


@dataclass(frozen=True, kw_only=True)
class NarConvertConfig:
    """Turn a raster autoregressive model into NAR (FlashAR, arXiv 2605.09430) and fine-tune it."""

    model: str = ""
    """A raster pipeline (folder or run of `align nar train --decoding raster`), or a LlamaGen
    class-conditional checkpoint (.pt or .safetensors)."""
    tokenizer: str | None = None
    """Of a LlamaGen checkpoint: its VQ-16 file."""
    num_heads: int | None = None
    """Of a LlamaGen checkpoint: attention heads (B 12, L 16, XL 20)."""
    grid: str | None = None
    """Of a LlamaGen checkpoint: HxW tokens, such as 16x16."""
    branch_depth: int = 1
    """Trunk blocks before the end at which the vertical branch starts."""
    data: str = ""
    """Pictures to fine-tune on, as for `align nar train`."""
    steps: int = 500
    """Optimizer updates; 0 converts without fine-tuning."""
    frozen_share: float = 0.2
    """Share of the updates in which only the branch, its head and the gate learn."""
    trunk_scale: float = 0.2
    """Learning rate of the trunk afterwards, as a share of the others'."""
    head_loss: float = 0.05
    """Weight of each head's own cross-entropy."""
    learning_rate: float = 2e-5
    """Peak of the cosine schedule."""
    batch_size: int = 16
    """Pictures per update."""
    micro_batch_size: int | None = None
    """Pictures per forward pass (default: all)."""
    weight_decay: float = 0.05
    """On all tensors of two or more dimensions."""
    condition_dropout: float = 0.1
    """Share of conditions replaced by none, for guidance."""
    flip: bool = False
    """Mirror half of the pictures."""
    ema_decay: float = 0.0
    """Decay of the weights' moving average; 0 keeps the last weights."""
    checkpoint_every: int = 200
    """Updates between checkpoints."""
    keep_checkpoints: int = 2
    """Checkpoints to keep."""
    max_minutes: float | None = None
    """Stop after this time, with a checkpoint."""
    mixed_precision: Literal["no", "bf16", "fp16"] | None = None
    """no, bf16 or fp16 (default: bf16 where it is faster)."""
    threads: int | None = None
    """CPU threads (default: PyTorch's choice)."""
    seed: int = 0
    """Seed of the gate, batches and dropout."""
    device: str | None = None
    """cpu or cuda (default: the best one present)."""
    tracker: Literal["none", "tensorboard", "wandb"] = "none"
    """Where losses go beside metrics.jsonl."""
    out: str | None = None
    """The run's folder (default: runs/COMMAND-TIME); the model lands in pipeline/."""
    overwrite: bool = False
    """Replace a run folder that is not empty."""
    resume: str | None = None
    """Continue the run in this folder, bit-exactly."""

    def __post_init__(self) -> None:
        """Raise ValueError where a value is out of range."""
        counts = ("batch_size", "micro_batch_size", "checkpoint_every", "keep_checkpoints")
        check(self, at_least_1=(*counts, "threads", "num_heads", "branch_depth"))
        check(self, positive=("learning_rate", "max_minutes"))
        check(self, not_negative=("steps", "trunk_scale", "head_loss", "weight_decay"))
        check(self, unit=("frozen_share", "condition_dropout", "ema_decay"))
        imply_out(self)
