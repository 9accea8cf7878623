"""The settings of `align train`. Standard library only; import it from `align.config`."""

from dataclasses import InitVar, dataclass
from typing import Any, Literal

from align.checks import Attention, Dtype, check, fill_in, imply_out
from align.presets import PRESETS
from align.training.windows import parse_window


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """AlignProp: LoRA fine-tuning by backpropagating a reward through the sampler."""

    model: str = "embedded/scenes"
    """embedded/NAME, a diffusers folder, a single-file checkpoint or a Hub id."""
    reward: str = "scenes-clip"
    """What to maximize: NAME[:ARGUMENT][=WEIGHT], joined by commas."""
    prompts: str | None = None
    """A built-in prompt set or a file (default with embedded models: scenes)."""
    lora: tuple[str, ...] = ()
    """Start from this LoRA (embedded/NAME, a file, folder, run or Hub id), optionally =WEIGHT."""
    negative_prompt: str | None = None
    """What the images should not show."""
    method: Literal["alignprop", "dpo"] = "alignprop"
    """alignprop follows the reward's gradient through the sampler; dpo draws a group of images a
    prompt and prefers the best by the reward to the worst (no gradient of the reward needed)."""
    steps: int = 100
    """Optimizer updates."""
    batch_size: int = 16
    """Images per update, over all processes."""
    micro_batch_size: int | None = None
    """Images per forward pass (default: the batch of a process); accumulation follows."""
    learning_rate: float = 1e-3
    """Peak learning rate."""
    optimizer: Literal["adamw", "adamw8bit"] = "adamw"
    """adamw8bit needs bitsandbytes."""
    weight_decay: float = 1e-4
    """Decoupled weight decay."""
    lr_schedule: Literal["constant", "linear", "cosine"] = "constant"
    """Course of the learning rate after the warm-up."""
    warmup_steps: int = 0
    """Updates over which the learning rate rises from 0."""
    max_grad_norm: float = 1.0
    """Gradients are clipped to this L2 norm; 0 leaves them."""
    max_step_grad_norm: float = 0.0
    """What a step of an image adds to the gradient is clipped as if its gradient by the denoiser's
    output had at most this L2 norm; 0 leaves it."""
    lora_rank: int = 4
    """Rank of the LoRA."""
    lora_alpha: float | None = None
    """Scale of the LoRA, as alpha / rank (default: the rank)."""
    lora_targets: tuple[str, ...] | None = None
    """Layers that get a LoRA, by the end of their names or a pattern of the whole name, such as
    up_blocks.*.attentions.* (default: the family's attention)."""
    height: int | None = None
    """Height in pixels (default: the model's own)."""
    width: int | None = None
    """Width in pixels (default: the model's own)."""
    scheduler: str | None = None
    """Sampler: a diffusers class such as DDIMScheduler, or NAME:KEY=VALUE,… (default: the
    model's own)."""
    num_inference_steps: int = 10
    """Denoising steps."""
    guidance_scale: float = 3.0
    """Classifier-free guidance; 1 is none."""
    eta: float = 0.0
    """Share of fresh noise in a DDIM step, 0 to 1; other samplers refuse it."""
    grad_window: str = "all"
    """Steps with gradient: all, K (the last), random[:A-B], random-per-sample[:A-B],
    draft-lv[:N], refl, drtune[:N], sparse:N or sparse:I,J,K."""
    detach_uncond: bool = False
    """No gradient through the unconditional branch of the guidance."""
    group_size: int = 8
    """Images of a prompt that are compared (dpo)."""
    pair_timesteps: int = 4
    """Timesteps at which each pair is compared (dpo)."""
    beta: float = 100.0
    """Strength of the tie to the base model (dpo): larger, nearer."""
    checkpointing: bool = True
    """Recompute the denoiser in the backward pass: less memory, more time."""
    kl_weight: float = 0.0
    """Weight of the squared distance to the base model's prediction."""
    normalize_rewards: bool = False
    """Put each reward term on one scale by its running mean and deviation."""
    term_gradients: bool = False
    """Log the gradient norm of each reward term by the images (one more backward pass each)."""
    ema_decay: float | None = None
    """Keep a moving average of the LoRA, saved as lora-ema."""
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
    preset: str | None = None
    """Published settings as defaults, such as alignprop, trl or draft-1; other options win."""
    seed: int = 0
    """Prompts and noises depend on it, the update and the image's index alone."""
    device: str | None = None
    """cpu, cuda, cuda:1 or mps (default: the best one present)."""
    dtype: Dtype | None = None
    """Precision of the frozen parts; the LoRA stays float32."""
    attention: Attention = "auto"
    """Attention implementation; auto takes xformers where it can run, else sdpa."""
    compile: bool = False
    """Compile the denoiser."""
    memory: Literal["12gb", "16gb", "24gb"] | None = None
    """Fit a card of this size: change the settings below, and others, until the estimate does."""
    block_checkpointing: bool = False
    """Recompute the denoiser block by block as well: less memory still, more time."""
    vae_tiling: bool = False
    """Decode image by image, with recomputed blocks; images larger than the autoencoder's own size
    in tiles, which changes pixels at their seams."""
    cache_embeddings: bool = False
    """Encode all prompts before the first update and take the text encoders out of memory."""
    quantize: Literal["8bit", "4bit"] | None = None
    """Keep the frozen denoiser in so many bits (CUDA and bitsandbytes)."""
    shard: bool = False
    """Spread the frozen denoiser over the processes (FSDP2); the LoRA stays whole."""
    offload: bool = False
    """Keep text encoders, and what the backward pass needs, on the CPU while not needed."""
    tracker: Literal["tensorboard", "wandb", "trackio", "none"] = "tensorboard"
    """Where curves go beside metrics.jsonl."""
    push_to_hub: str | None = None
    """Upload the LoRA to this Hub id at the end."""
    self_check: bool = False
    """Train nothing; check parity, gradient and memory on this model and say what was found."""
    dry_run: bool = False
    """Train nothing; print how much memory it would take, and the settings of --memory."""
    out: str | None = None
    """The run's folder (default: runs/train-TIME)."""
    resume: str | None = None
    """Continue the run in this folder."""
    overwrite: bool = False
    """Replace a run folder that is not empty."""

    filled: InitVar[dict[str, Any] | None] = None  # for dataclasses.replace alone

    def __new__(cls, **given: Any):
        """Remember what was given: a preset fills only the rest."""
        config = super().__new__(cls)
        object.__setattr__(config, "given", given)
        return config

    def __post_init__(self, filled: dict[str, Any] | None) -> None:
        """Apply the preset; raise ValueError where a value is out of range."""
        fill_in(self, PRESETS, filled)
        check(
            self,
            at_least_1=("steps", "batch_size", "micro_batch_size", "lora_rank"),
            not_negative=("weight_decay", "warmup_steps", "max_grad_norm", "guidance_scale"),
            positive=("learning_rate", "lora_alpha", "max_minutes", "beta"),
            unit=("eta", "ema_decay"),
        )
        check(
            self,
            at_least_1=("num_inference_steps", "height", "width", "judge_every", "patience"),
            not_negative=("kl_weight", "max_step_grad_norm", "sample_every", "checkpoint_every"),
        )
        check(self, at_least_1=("keep_checkpoints", "judge_images", "pair_timesteps"))
        if self.micro_batch_size and self.batch_size % self.micro_batch_size:
            raise ValueError(
                f"micro_batch_size is {self.micro_batch_size}; it must divide batch_size, "
                f"which is {self.batch_size}"
            )
        if self.method == "dpo":
            self._check_groups()
        for name in ("judge_prompts", "patience"):
            if getattr(self, name) is not None and self.judge is None:
                raise ValueError(f"{name} is {getattr(self, name)!r}, which needs a judge")
        if self.lora_targets == ():
            raise ValueError("lora_targets is empty; name at least one layer, such as to_q")
        parse_window(self.grad_window, self.num_inference_steps)
        imply_out(self)

    def _check_groups(self) -> None:
        """Raise ValueError where groups of a prompt's images do not fill the batch."""
        if self.group_size < 2:
            raise ValueError(f"group_size is {self.group_size}; at least 2 images can be compared")
        for name in ("batch_size", "micro_batch_size"):
            images = getattr(self, name)
            if images is not None and images % self.group_size:
                raise ValueError(
                    f"{name} is {images}; it must be a multiple of group_size, "
                    f"which is {self.group_size}"
                )


del TrainConfig.__annotations__["filled"]  # it is no setting
