"""The fields of `align rewards stress`. Standard library only."""

from dataclasses import dataclass
from typing import Literal

from align.checks import Attention, Dtype, check

What = Literal["noise", "latents"]


@dataclass(frozen=True, kw_only=True)
class StressConfig:
    """How far a reward can be raised before a judge that is not optimized falls."""

    reward: str = ""
    """What the ascent raises: a reward expression."""
    judge: str | None = None
    """What judges: a reward expression that is not optimized (default: the verifier)."""
    what: What = "noise"
    """What is moved: the noise, through the sampler, or the final latents before the decoder."""
    steps: int = 12
    """Steps of each ascent."""
    step_length: float = 1 / 64
    """Length of a step, as a share of the noise's (or the latents') own."""
    model: str = "embedded/scenes-turbo"
    """embedded/NAME, a diffusers folder, a single-file checkpoint or a Hub id."""
    lora: tuple[str, ...] = ()
    """A LoRA file, folder, run or Hub id, with an optional =WEIGHT; repeatable."""
    prompts: str | None = None
    """A built-in prompt set, or a text (one prompt a line), CSV or JSONL file."""
    num_prompts: int = 90
    """So many of the prompts, evenly spread over the set; one picture each."""
    scheduler: str | None = None
    """A diffusers scheduler class, such as DDIMScheduler (default: the model's own)."""
    num_inference_steps: int | None = None
    """Denoising steps (default: the pipeline's own; distilled models take 1)."""
    guidance_scale: float | None = None
    """Classifier-free guidance (default: the pipeline's own)."""
    grad_steps: int | None = None
    """Last denoising steps with gradient, those before as the identity (default: all)."""
    height: int | None = None
    """Height in pixels (default: the model's own)."""
    width: int | None = None
    """Width in pixels (default: the model's own)."""
    batch_size: int = 16
    """Prompts per forward and backward pass."""
    checkpointing: bool = False
    """Recompute the model in the backward pass: less memory, more time."""
    seed: int = 0
    """Prompt i starts from the noise of seed + i."""
    device: str | None = None
    """cpu, cuda, cuda:1 or mps (default: the best one present)."""
    dtype: Dtype | None = None
    """Precision of the model (default: float32 on CPU, else the weights' own)."""
    attention: Attention = "auto"
    """Attention implementation; auto takes xformers where it can run, else sdpa."""
    out: str | None = None
    """The run's folder (default: runs/rewards-stress-TIME)."""
    overwrite: bool = False
    """Replace a run folder that is not empty."""

    def __post_init__(self) -> None:
        """Raise ValueError where a value is out of range."""
        check(
            self,
            at_least_1=(
                "steps", "num_prompts", "num_inference_steps", "grad_steps", "batch_size", "height",
                "width",
            ),
            not_negative=("guidance_scale", "seed"),
            positive=("step_length",),
        )  # fmt: skip
