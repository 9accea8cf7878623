"""Settings that several commands share, in groups that a config inherits: each option and its help
is written once. A config redeclares one to give it another default, and its help where that
differs. Standard library only."""

from dataclasses import InitVar, dataclass, fields
from typing import Any, Literal

from align.config.checks import (
    Attention,
    Count,
    CountOr0,
    Dtype,
    NotNegative,
    Positive,
    Share,
    read_stop,
)

# What a user sets most.
FIRST = (
    "source", "prompt", "prompts", "model", "lora", "data", "tokenizer", "reward", "method",
    "methods", "budget", "steps", "batch_size", "learning_rate",
)  # fmt: skip


def ordered(kind: type) -> list[str]:
    """The names of a config's settings as help and command lines list them: those of `FIRST`, then
    class by class, the config's own before those of its groups."""

    def place(name: str) -> tuple[int, int]:
        first = FIRST.index(name) if name in FIRST else len(FIRST)
        return first, max(i for i, base in enumerate(kind.__mro__) if name in vars(base))

    return sorted((field.name for field in fields(kind)), key=place)


@dataclass(frozen=True, kw_only=True)
class Prompts:
    """What is drawn, and what scores it."""

    prompt: tuple[str, ...] = ()
    """Prompts, as plain arguments."""
    prompts: str | None = None
    """A built-in prompt set, or a text (one prompt a line), CSV, TSV, JSONL or JSON file."""
    reward: str | None = None
    """Score the images: a reward expression such as scenes-clip=1,scenes-vqa=1."""


@dataclass(frozen=True, kw_only=True)
class Pipeline:
    """Where the diffusion pipeline comes from."""

    model: str = "embedded/scenes"
    """embedded/NAME, a diffusers folder, a single-file checkpoint or a Hub id."""
    lora: tuple[str, ...] = ()
    """embedded/NAME, a LoRA file, folder, run or Hub id, with an optional =WEIGHT; repeatable."""
    scheduler: str | None = None
    """Sampler: a diffusers class such as DDIMScheduler, or NAME:KEY=VALUE,… (default: the
    model's own)."""


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How images are drawn."""

    num_inference_steps: Count | None = None
    """Denoising steps (default: the pipeline's own; distilled models take 1)."""
    guidance_scale: NotNegative | None = None
    """Classifier-free guidance (default: the pipeline's own)."""
    batch_size: Count = 8
    """Images per forward pass."""


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """What a sampler takes beside the prompt."""

    negative_prompt: str | None = None
    """What the images should not show."""
    eta: Share = 0.0
    """Share of fresh noise in a DDIM step, 0 to 1; other samplers refuse it."""


@dataclass(frozen=True, kw_only=True)
class Size:
    """How large images are."""

    height: Count | None = None
    """Height in pixels (default: the model's own)."""
    width: Count | None = None
    """Width in pixels (default: the model's own)."""


@dataclass(frozen=True, kw_only=True)
class Frames:
    """How long videos are, of models that draw them."""

    num_frames: Count | None = None
    """Frames of a video (default: the model's own; only with models of videos)."""
    reward_every: Count = 1
    """Score every n-th frame of a video, the first among them; its reward is their mean."""
    fps: Positive = 8.0
    """Frames a second of a video's file."""


@dataclass(frozen=True, kw_only=True)
class Gradient:
    """How far a gradient goes back."""

    grad_steps: Count | None = None
    """Last denoising steps with gradient, those before as the identity (default: all)."""
    checkpointing: bool = False
    """Recompute the model in the backward pass: less memory, more time."""


@dataclass(frozen=True, kw_only=True)
class LoraTraining:
    """How a LoRA is trained on the model's own images, judged and kept."""

    reward: str = "scenes-clip"
    """What to maximize: NAME[:ARGUMENT][=WEIGHT], joined by commas."""
    prompts: str | None = None
    """A built-in prompt set or a file (default with embedded models: scenes)."""
    steps: Count = 100
    """Optimizer updates."""
    batch_size: Count = 16
    """Images per update, over all processes."""
    learning_rate: Positive = 1e-3
    """Peak learning rate."""
    weight_decay: NotNegative = 1e-4
    """Decoupled weight decay."""
    lr_schedule: Literal["constant", "linear", "cosine"] = "constant"
    """Course of the learning rate after the warm-up."""
    warmup_steps: CountOr0 = 0
    """Updates over which the learning rate rises from 0."""
    max_grad_norm: NotNegative = 1.0
    """Gradients are clipped to this L2 norm; 0 leaves them."""
    lora_rank: Count = 4
    """Rank of the LoRA."""
    lora_alpha: Positive | None = None
    """Scale of the LoRA, as alpha / rank (default: the rank)."""
    judge: str | None = None
    """Judge held-out images by this expression; the best LoRA is kept as lora-best."""
    judge_prompts: str | None = None
    """Prompts of the judge (default with embedded models: scenes-heldout-a)."""
    judge_images: Count = 48
    """Images of a judgment, two per prompt."""
    judge_every: Count = 10
    """Updates between two judgments."""
    patience: Count | None = None
    """Stop after this many judgments without a new best."""
    stop_on: str | None = None
    """Stop where a measure of hacking has risen so far above the base's: grid:0.01."""
    sample_every: CountOr0 = 25
    """Updates between two image grids; 0 draws only the first and the last."""
    checkpoint_every: CountOr0 = 25
    """Updates between two checkpoints; 0 writes only the last."""
    keep_checkpoints: Count = 2
    """How many checkpoints stay on disk."""
    max_minutes: Positive | None = None
    """Stop, save and end well after this many minutes."""
    tracker: Literal["tensorboard", "wandb", "trackio", "none"] = "tensorboard"
    """Where curves go beside metrics.jsonl."""
    push_to_hub: str | None = None
    """Upload the LoRA to this Hub id at the end."""

    def check_judging(self) -> None:
        """Raise ValueError where a setting needs a judge and there is none, or has no such form."""
        for name in ("judge_prompts", "patience", "stop_on"):
            if getattr(self, name) is not None and self.judge is None:
                raise ValueError(f"{name} is {getattr(self, name)!r}, which needs a judge")
        if self.stop_on is not None:
            read_stop(self.stop_on)


@dataclass(frozen=True, kw_only=True)
class PictureTraining:
    """How a model of its own is trained on pictures and kept."""

    batch_size: Count = 16
    """Pictures per update."""
    ema_decay: Share = 0.995
    """Decay of the weights' moving average; 0 keeps the last weights."""
    checkpoint_every: Count = 200
    """Updates between checkpoints."""
    keep_checkpoints: Count = 2
    """Checkpoints to keep."""
    max_minutes: Positive | None = None
    """Stop after this time, with a checkpoint."""
    mixed_precision: Literal["no", "bf16", "fp16"] | None = None
    """no, bf16 or fp16 (default: bf16 where it is faster)."""
    threads: Count | None = None
    """CPU threads (default: PyTorch's choice)."""
    tracker: Literal["none", "tensorboard", "wandb"] = "none"
    """Where losses go beside metrics.jsonl."""
    device: str | None = None
    """cpu or cuda (default: the best one present)."""
    out: str | None = None
    """The run's folder (default: runs/COMMAND-TIME); the model lands in pipeline/."""


@dataclass(frozen=True, kw_only=True)
class NarTraining:
    """What belongs to the training of a NAR model."""

    weight_decay: NotNegative = 0.05
    """On all tensors of two or more dimensions."""
    condition_dropout: Share = 0.1
    """Share of conditions replaced by none, for guidance."""
    flip: bool = False
    """Mirror half of the pictures (not where left and right matter)."""


@dataclass(frozen=True, kw_only=True)
class Device:
    """Where it runs."""

    device: str | None = None
    """cpu, cuda, cuda:1 or mps (default: the best one present)."""


@dataclass(frozen=True, kw_only=True)
class Arithmetic:
    """How a pipeline computes."""

    dtype: Dtype | None = None
    """Precision of the model (default: float32 on CPU, else the weights' own)."""
    attention: Attention = "auto"
    """Attention implementation; auto takes xformers where it can run, else sdpa."""


@dataclass(frozen=True, kw_only=True)
class RunFolder:
    """Where a run goes."""

    out: str | None = None
    """The run's folder (default: runs/COMMAND-TIME)."""
    overwrite: bool = False
    """Replace a run folder that is not empty."""


@dataclass(frozen=True, kw_only=True)
class Resumable:
    """A run that goes on."""

    resume: str | None = None
    """Continue the run in this folder, bit-exactly."""


@dataclass(frozen=True, kw_only=True)
class Presets:
    """Settings by a preset's name, which fills what the caller did not give."""

    filled: InitVar[dict[str, Any] | None] = None  # for dataclasses.replace alone

    def __new__(cls, **given: Any):
        """Remember what was given."""
        config = super().__new__(cls)
        object.__setattr__(config, "given", given)
        return config


del Presets.__annotations__["filled"]  # it is no setting
