"""The settings of `align train`, and the table of training methods."""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from align.config.checks import (
    Count,
    Dtype,
    NotNegative,
    OneOf,
    Positive,
    Share,
    check,
    fill_in,
    imply_out,
)
from align.config.groups import (
    Arithmetic,
    Device,
    Drawing,
    Frames,
    LoraTraining,
    Pipeline,
    Presets,
    Resumable,
    RunFolder,
    Size,
)
from align.config.presets import PRESETS
from align.config.windows import Window, parse_window


@dataclass(frozen=True)
class TrainMethod:
    """A way to train a LoRA."""

    loss: str
    """module:function of a run, an update's number and global indices of its images, which returns
    an `align.alignprop.update.BatchLoss`."""
    does: str
    """What it does, in a sentence for model cards and lists."""
    settings: tuple[str, ...] = ()
    """Those that belong to it, for its card."""
    through_sampler: bool = False
    """Whether the reward's gradient goes through the sampler: it needs a reward that has one. Other
    methods ask the denoiser at noised images."""
    compares: bool = False
    """Whether it draws a group of images of each prompt and compares their scores."""
    of_pairs: str | None = None
    """The loss with --pairs, as `loss`; None where it learns from its own images alone."""
    needs_pairs: bool = False
    """Whether it has no other pictures than those."""


# Every training method: `align train --method`, the losses, the cards and the docs read this.
METHODS = {
    "alignprop": TrainMethod("align.alignprop.update:batch_loss",
        "AlignProp (arXiv 2310.03739): the reward is backpropagated through the sampler",
        settings=("grad_window",), through_sampler=True),
    "dpo": TrainMethod("align.alignprop.preferences:preference_loss",
        "Diffusion-DPO (arXiv 2311.12908): of the images of a prompt, the best by the reward, or "
        "those that people chose, are preferred to the worst",
        settings=("group_size", "pair_timesteps", "beta"), compares=True,
        of_pairs="align.alignprop.pairs:pairs_loss"),
    "nft": TrainMethod("align.alignprop.nft:forward_loss",
        "DiffusionNFT (arXiv 2509.16117): its own images are weighed by their advantage in the "
        "reward over others of their prompt",
        settings=("group_size", "pair_timesteps", "nft_beta", "advantage", "old_decay"),
        compares=True),
    "grpo": TrainMethod("align.alignprop.grpo:policy_loss",
        "Flow-GRPO (arXiv 2505.05470): steps drawn from a Gaussian become likelier where their "
        "images do better in the reward than others of their prompt",
        settings=("grad_window", "group_size", "advantage", "noise_level", "stochastic_step"),
        compares=True),
    "sft": TrainMethod("align.alignprop.pairs:chosen_loss", "plain denoising of chosen pictures",
        settings=("pair_timesteps",), of_pairs="align.alignprop.pairs:chosen_loss",
        needs_pairs=True),
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class TrainConfig(
    Pipeline,
    LoraTraining,
    Drawing,
    Size,
    Frames,
    Device,
    Arithmetic,
    RunFolder,
    Resumable,
    Presets,
):
    """LoRA fine-tuning by a reward (AlignProp, DPO, NFT), or on pictures of one's own."""

    lora: tuple[str, ...] = ()
    """Start from this LoRA (embedded/NAME, a file, folder, run or Hub id), optionally =WEIGHT."""
    method: Annotated[str, OneOf(METHODS)] = "alignprop"
    """alignprop follows the reward's gradient through the sampler. Without a gradient of it, dpo
    draws groups of images of a prompt and prefers the best to the worst, nft weighs all of them by
    their advantage, grpo reinforces steps of the sampler. With --pairs, dpo and sft learn from
    pictures of one's own."""
    pairs: str | None = None
    """Pictures to learn from: a table (CSV, JSONL, Parquet) of prompt, chosen, rejected, a folder
    with chosen/ and rejected/, or a webdataset .tar (dpo; sft takes the chosen ones alone)."""
    micro_batch_size: Count | None = None
    """Images per forward pass (default: the batch of a process); accumulation follows."""
    optimizer: Literal["adamw", "adamw8bit"] = "adamw"
    """adamw8bit needs bitsandbytes."""
    max_step_grad_norm: NotNegative = 0.0
    """What a step of an image adds to the gradient is clipped as if its gradient by the denoiser's
    output had at most this L2 norm; 0 leaves it."""
    lora_targets: tuple[str, ...] | None = None
    """Layers that get a LoRA, by the end of their names or a pattern of the whole name, such as
    up_blocks.*.attentions.* (default: the family's attention)."""
    num_inference_steps: Count = 10
    """Denoising steps."""
    guidance_scale: NotNegative = 3.0
    """Classifier-free guidance; 1 is none."""
    grad_window: str = "all"
    """Steps with gradient: all, K (the last), random[:A-B], random-per-sample[:A-B],
    draft-lv[:N], refl, drtune[:N], sparse:N or sparse:I,J,K."""
    detach_uncond: bool = False
    """No gradient through the unconditional branch of the guidance."""
    group_size: int = 8
    """Images of a prompt that are compared (dpo, nft)."""
    pair_timesteps: Count = 4
    """Timesteps at which each pair (dpo) or image (nft, sft) is noised and learned from."""
    beta: Positive = 100.0
    """Strength of the tie to the base model (dpo): larger, nearer."""
    nft_beta: Positive = 1.0
    """How far nft's two branches lie from the old policy; 0.1 steps farther."""
    old_decay: Share = 0.0
    """Ceiling of the decay min(0.001 n, ceiling) of the old policy that draws for nft; 0 draws by
    the present one and keeps no copy."""
    noise_level: Positive = 0.7
    """Noise of grpo's stochastic steps: the paper's a; eta of DDIM."""
    stochastic_step: Literal["sde", "cps"] = "sde"
    """grpo's step with flow matching: the paper's, or one that keeps the noise level exact."""
    advantage: Literal["running", "group", "mean"] = "running"
    """What nft and grpo divide a score's distance from its group's mean by: the running deviation,
    the group's own, or 10, for a reward of known scale."""
    checkpointing: bool = True
    """Recompute the denoiser in the backward pass: less memory, more time."""
    kl_weight: NotNegative = 0.0
    """Weight of the squared distance to the base model's prediction."""
    normalize_rewards: bool = False
    """Put each reward term on one scale by its running mean and deviation."""
    term_gradients: bool = False
    """Log the gradient norm of each reward term by the images (one more backward pass each)."""
    ema_decay: Share | None = None
    """Keep a moving average of the LoRA, saved as lora-ema."""
    preset: str | None = None
    """Published settings as defaults, such as alignprop, trl or draft-1; other options win."""
    seed: int = 0
    """Prompts and noises depend on it, the update and the image's index alone."""
    dtype: Dtype | None = None
    """Precision of the frozen parts; the LoRA stays float32."""
    compile: bool = False
    """Compile the denoiser."""
    memory: Literal["12gb", "16gb", "24gb"] | None = None
    """Fit a card of this size: change the settings below, and others, until the estimate does."""
    block_checkpointing: bool = False
    """Recompute the denoiser block by block as well: less memory still, more time."""
    vae_tiling: bool = False
    """Decode image by image, with recomputed blocks. In spite of its name never in tiles, which
    would change the reward and its gradient."""
    cache_embeddings: bool = False
    """Encode all prompts before the first update and take the text encoders out of memory."""
    quantize: Literal["8bit", "4bit"] | None = None
    """Keep the frozen denoiser in so many bits (CUDA and bitsandbytes)."""
    shard: bool = False
    """Spread the frozen denoiser over the processes (FSDP2); the LoRA stays whole."""
    offload: bool = False
    """Keep text encoders, and what the backward pass needs, on the CPU while not needed."""
    self_check: bool = False
    """Train nothing; check parity, gradient and memory on this model and say what was found."""
    dry_run: bool = False
    """Train nothing; print how much memory it would take, and the settings of --memory."""

    def __post_init__(self, filled: dict[str, Any] | None) -> None:
        """Apply the preset; raise ValueError where a value is out of range."""
        fill_in(self, PRESETS, filled)
        check(self)
        if self.micro_batch_size and self.batch_size % self.micro_batch_size:
            raise ValueError(
                f"micro_batch_size is {self.micro_batch_size}; it must divide batch_size, "
                f"which is {self.batch_size}"
            )
        method = METHODS[self.method]
        if self.pairs and method.of_pairs is None:
            others = " and ".join(name for name, one in METHODS.items() if one.of_pairs)
            raise ValueError(
                f"pairs is {self.pairs!r}; {self.method} learns from images of its own, "
                f"{others} from pairs"
            )
        if method.needs_pairs and not self.pairs:
            raise ValueError(f"method is {self.method!r}, which needs pictures: give --pairs")
        if self.compares:
            self._check_groups()
        self.check_judging()
        if self.lora_targets == ():
            raise ValueError("lora_targets is empty; name at least one layer, such as to_q")
        window = self.window
        if self.method == "grpo" and (window.kind not in ("tail", "random", "sparse") or self.eta):
            raise ValueError(
                f"grad_window is {self.grad_window!r} and eta {self.eta}; grpo takes all, K, "
                "random or sparse, and noise_level in place of eta"
            )
        imply_out(self)

    @property
    def window_steps(self) -> int:
        """The steps that the gradient window is of: grpo's last one adds no noise and is not."""
        steps = self.num_inference_steps
        if self.method == "grpo" and steps < 2:
            raise ValueError(f"num_inference_steps is {steps}; grpo needs at least 2")
        return steps - (self.method == "grpo")

    @property
    def window(self) -> Window:
        """The gradient window. Raises ValueError for a form that is unknown."""
        return parse_window(self.grad_window, self.window_steps)

    @property
    def compares(self) -> bool:
        """Whether an update draws groups of images of a prompt."""
        return METHODS[self.method].compares and self.pairs is None

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
