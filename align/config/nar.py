"""The settings of `align nar …`, as frozen dataclasses. Standard library only."""

import re
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from align.config.checks import (
    Count,
    CountOr0,
    Dtype,
    NotNegative,
    Positive,
    Share,
    check,
    fill_in,
    imply_out,
)
from align.config.groups import (
    Device,
    LoraTraining,
    NarTraining,
    PictureTraining,
    Presets,
    Prompts,
    Resumable,
    RunFolder,
)


def parse_grid(text: str) -> tuple[int, ...]:
    """(rows, columns) of "HxW" or (time, rows, columns) of "TxHxW"; ValueError for other text."""
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*){1,2}", text):
        raise ValueError(f"grid is {text!r}; it must be HxW or TxHxW, such as 16x16 or 4x16x16")
    return tuple(int(side) for side in text.split("x"))


@dataclass(frozen=True, kw_only=True)
class NarGenerateConfig(Prompts, Device, RunFolder):
    """Pictures by neighboring-autoregressive decoding."""

    prompt: tuple[str, ...] = ()
    """Prompts, as plain arguments (text-conditional models)."""
    class_labels: tuple[str, ...] = ()
    """Class names or numbers (class-conditional models)."""
    model: str = "embedded/nar-scenes"
    """embedded/NAME or a pipeline's folder."""
    lora: tuple[str, ...] = ()
    """A LoRA of `align nar align` (a file, folder, run or Hub id), optionally =WEIGHT."""
    num_images: Count = 1
    """Images per prompt or class."""
    best_of: Count = 1
    """Draw this many for each image and keep the best by --reward."""
    guidance_scale: Annotated[float, "at least 1"] | None = None
    """Classifier-free guidance, at least 1 (default: the model's own)."""
    temperature: NotNegative | None = None
    """Divides the logits; 0 is greedy (default: the model's own)."""
    top_k: CountOr0 | None = None
    """Keep the k most probable tokens; 0 keeps all (default: the model's own)."""
    top_p: Annotated[Positive, "from 0 to 1"] | None = None
    """Keep the smallest set of tokens of this probability (default: the model's own)."""
    grid: str | None = None
    """Check that the model draws HxW tokens (clips: TxHxW)."""
    num_frames: Count | None = None
    """Check that the model draws clips of this many frames."""
    height: Count | None = None
    """Check that the model draws this many pixels down."""
    width: Count | None = None
    """Check that the model draws this many pixels across."""
    clip_format: Literal["gif", "mp4"] = "gif"
    """How clips are written; mp4 needs PyAV or imageio-ffmpeg."""
    fps: Positive = 8.0
    """Frames a second of a clip's file."""
    batch_size: Count = 16
    """Images decoded together."""
    compile: bool = False
    """Compile the transformer's blocks (takes a minute, pays off for many images)."""
    seed: int = 0
    """Image i of the command draws from the generator of seed + i."""
    dtype: Dtype | None = None
    """Precision of the model (default: float32 on CPU, else bfloat16)."""

    def __post_init__(self) -> None:
        """Raise ValueError where a value is out of range."""
        check(self)
        if self.grid is not None:
            parse_grid(self.grid)
        if self.best_of > 1 and not self.reward:
            raise ValueError("best_of needs a reward to choose by")


@dataclass(frozen=True, kw_only=True)
class NarTokenizerConfig(PictureTraining, RunFolder, Resumable):
    """Train an image tokenizer: pictures to a grid of token ids and back."""

    data: str = ""
    """A folder of pictures (any depth), webdataset .tar files, or a `datasets` name or folder."""
    image_size: Count = 64
    """Pictures are resized and centre-cropped to this many pixels a side."""
    patch: int = 4
    """Pixels a side of a token: 2, 4, 8 or 16."""
    width: Count = 24
    """Channels at full size; doubled at every halving, up to 4 times."""
    context: CountOr0 = 0
    """Encoder blocks that look at neighbouring patches (0: equal patches get equal codes)."""
    quantizer: Literal["fsq", "vq"] = "fsq"
    """fsq has no codebook to collapse; vq learns one."""
    levels: tuple[int, ...] = (8, 5, 5, 5)
    """Levels per dimension of fsq; their product is the number of codes."""
    codebook_size: Count = 1024
    """Codes of vq."""
    steps: Count = 400
    """Optimizer updates."""
    learning_rate: Positive = 2e-3
    """Peak of the cosine schedule (AdamW)."""
    seed: int = 0
    """Seed of weights and batches."""
    out: str | None = None
    """The run's folder (default: runs/COMMAND-TIME); the tokenizer lands in tokenizer/."""

    def __post_init__(self) -> None:
        """Raise ValueError where a value is out of range."""
        check(self)
        if self.patch not in (2, 4, 8, 16):
            raise ValueError(f"patch is {self.patch}; it must be 2, 4, 8 or 16")
        if self.image_size % self.patch:
            raise ValueError(f"image_size is {self.image_size}; patches of {self.patch} do not fit")
        imply_out(self)


@dataclass(frozen=True, kw_only=True)
class NarTrainConfig(NarTraining, PictureTraining, RunFolder, Resumable, Presets):
    """Train a neighboring-autoregressive model on pictures of one's own."""

    data: str = ""
    """A folder of pictures, webdataset .tar files, or a `datasets` name or folder."""
    tokenizer: str = ""
    """The image tokenizer: a folder that `align nar tokenizer` wrote, or a run of it."""
    condition: Literal["auto", "class", "text"] = "auto"
    """class: the subfolder or label; text: captions (picture.txt beside picture.png, or a text
    column). auto takes captions where every picture has one."""
    text_encoder: str | None = None
    """A frozen text encoder: a folder or Hub id of T5 or CLIP (default: a small one of its own,
    trained along)."""
    text_tokens: Count = 32
    """Tokens of a prompt."""
    preset: Literal["paper"] | None = None
    """paper: the published class-conditional recipe (arXiv 2503.10696, NAR-B)."""
    grid: str | None = None
    """Check that the tokenizer makes HxW tokens."""
    width: Count = 128
    """Width of the transformer."""
    num_layers: Count = 4
    """Blocks of the trunk; the second head adds one."""
    num_heads: Count = 2
    """Attention heads."""
    branch_depth: int = 0
    """Trunk blocks before the end at which the second head's block branches off (0: stacked)."""
    fusion: Literal["mean", "scalar", "gate"] = "mean"
    """How the heads' logits are mixed."""
    decoding: Literal["wavefront", "raster", "parallel"] = "wavefront"
    """NAR's order, or a baseline: raster, or PAR-4x."""
    cond_rope: Literal["identity", "zero"] = "identity"
    """Rotary table of condition tokens; zero is that of the published checkpoints."""
    head_loss: NotNegative = 0.0
    """Weight of an additional cross-entropy per head."""
    dropout: Share = 0.1
    """On embeddings, attention and feed-forward outputs."""
    steps: Count = 500
    """Optimizer updates."""
    batch_size: Count = 16
    """Pictures per update over all processes."""
    micro_batch_size: Count | None = None
    """Pictures per forward pass of a process (default: its whole share)."""
    learning_rate: Positive = 1e-3
    """Peak learning rate (AdamW, betas 0.9 and 0.95)."""
    lr_schedule: Literal["cosine", "paper-steps", "constant"] = "cosine"
    """paper-steps: times 0.2 at 1/2, 2/3 and 5/6 of the run."""
    warmup_steps: CountOr0 = 20
    """Updates of linear warm-up."""
    max_grad_norm: Positive = 1.0
    """Clips the gradient's norm."""
    sample_every: CountOr0 = 0
    """Updates between sample sheets in images/; 0 makes one at the end."""
    checkpointing: bool = False
    """Recompute activations in the backward pass, to save memory."""
    compile: bool = False
    """Compile the transformer's blocks."""
    seed: int = 0
    """Seed of weights, batches and dropout."""

    def __post_init__(self, filled: dict[str, Any] | None) -> None:
        """Apply the preset; raise ValueError where a value is out of range."""
        fill_in(self, PRESETS, filled)
        check(self)
        if self.grid is not None:
            parse_grid(self.grid)
        imply_out(self)


# The paper's class-conditional recipe (section 4.1 and the authors' script, model B): 300 epochs
# of ImageNet at batch 256.
PRESETS: dict[str, dict[str, Any]] = {
    "paper": {
        "width": 768,
        "num_layers": 12,
        "num_heads": 12,
        "cond_rope": "zero",
        "steps": 1_500_000,
        "batch_size": 256,
        "learning_rate": 1e-4,
        "lr_schedule": "paper-steps",
        "warmup_steps": 0,
        "flip": True,
        "ema_decay": 0.0,
    }
}


@dataclass(frozen=True, kw_only=True)
class NarAlignConfig(LoraTraining, RunFolder, Resumable):
    """Raise a reward by policy gradients (GRPO) or by preferences (DPO) on exact probabilities."""

    model: str = "embedded/nar-scenes"
    """embedded/NAME, a NAR pipeline's folder or a Hub id."""
    method: Literal["grpo", "dpo"] = "grpo"
    """grpo compares the images of a prompt's group; dpo prefers the best of them to the worst."""
    reward: str = "scenes-clip"
    """What to maximize: NAME[:ARGUMENT][=WEIGHT], joined by commas; needs no gradient."""
    lora: tuple[str, ...] = ()
    """Start from this LoRA (a file, folder, run or Hub id), optionally =WEIGHT."""
    steps: Count = 100
    """Updates, each on images of its own."""
    batch_size: Count = 32
    group_size: int = 8
    """Images of a prompt in an update, which are compared with each other."""
    micro_batch_size: Count | None = 16
    """Images per forward pass with gradient."""
    normalize_std: bool = True
    """Divide a group's advantages by its standard deviation (grpo)."""
    kl_weight: NotNegative = 0.01
    """Weight of the divergence from the base model, in nats per token (grpo)."""
    beta: Positive = 0.1
    """Strength of the tie to the base model (dpo)."""
    temperature: Positive = 1.0
    """Of the policy: images are drawn, and their probabilities taken, at this temperature."""
    guidance_scale: Annotated[float, "at least 1"] = 1.0
    """Of the policy: from 1 on its probabilities are those of the guided mixture, which takes twice
    the time; 1 is no guidance."""
    learning_rate: Positive = 3e-4
    """Peak learning rate (AdamW)."""
    lora_rank: Count = 8
    lora_targets: tuple[str, ...] | None = None
    """Layers that get a LoRA, by the end of their names (default: attention and feed-forward)."""
    seed: int = 0
    """Prompts and images depend on it, the update and the image's index alone."""
    device: str | None = None
    """cpu, cuda or cuda:1 (default: the best one present)."""
    mixed_precision: Literal["no", "bf16"] | None = None
    """Of drawing and of probabilities: no or bf16 (default: bf16 where it is faster)."""

    def __post_init__(self) -> None:
        """Raise ValueError where a value is out of range."""
        check(self)
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
        self.check_judging()
        imply_out(self)


@dataclass(frozen=True, kw_only=True)
class NarConvertConfig(NarTraining, PictureTraining, RunFolder, Resumable):
    """Turn a raster autoregressive model into NAR (FlashAR, arXiv 2605.09430) and fine-tune it."""

    model: str = ""
    """A raster pipeline (folder or run of `align nar train --decoding raster`), or a LlamaGen
    class-conditional checkpoint (.pt or .safetensors)."""
    tokenizer: str | None = None
    """Of a LlamaGen checkpoint: its VQ-16 file."""
    num_heads: Count | None = None
    """Of a LlamaGen checkpoint: attention heads (B 12, L 16, XL 20)."""
    grid: str | None = None
    """Of a LlamaGen checkpoint: HxW tokens, such as 16x16."""
    branch_depth: Count = 1
    """Trunk blocks before the end at which the vertical branch starts."""
    data: str = ""
    """Pictures to fine-tune on, as for `align nar train`."""
    steps: CountOr0 = 500
    """Optimizer updates; 0 converts without fine-tuning."""
    frozen_share: Share = 0.2
    """Share of the updates in which only the branch, its head and the gate learn."""
    trunk_scale: NotNegative = 0.2
    """Learning rate of the trunk afterwards, as a share of the others'."""
    head_loss: NotNegative = 0.05
    """Weight of each head's own cross-entropy."""
    learning_rate: Positive = 2e-5
    """Peak of the cosine schedule."""
    micro_batch_size: Count | None = None
    """Pictures per forward pass (default: all)."""
    ema_decay: Share = 0.0
    seed: int = 0
    """Seed of the gate, batches and dropout."""

    def __post_init__(self) -> None:
        """Raise ValueError where a value is out of range."""
        check(self)
        imply_out(self)
