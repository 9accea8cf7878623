"""The settings of `align nar …`, as frozen dataclasses. Standard library only."""

import re
from dataclasses import InitVar, dataclass
from typing import Any, Literal

from align.checks import check, fill_in, imply_out
from align.nar.align_config import NarAlignConfig as NarAlignConfig
from align.nar.convert_config import NarConvertConfig as NarConvertConfig

Precision = Literal["no", "bf16", "fp16"]


def parse_grid(text: str) -> tuple[int, ...]:
    """(rows, columns) of "HxW" or (time, rows, columns) of "TxHxW"; ValueError for other text."""
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*){1,2}", text):
        raise ValueError(f"grid is {text!r}; it must be HxW or TxHxW, such as 16x16 or 4x16x16")
    return tuple(int(side) for side in text.split("x"))


@dataclass(frozen=True, kw_only=True)
class NarGenerateConfig:
    """Pictures by neighboring-autoregressive decoding."""

    prompt: tuple[str, ...] = ()
    """Prompts, as plain arguments (text-conditional models)."""
    prompts: str | None = None
    """A built-in prompt set, or a text (one prompt a line), CSV, TSV, JSONL or JSON file."""
    class_labels: tuple[str, ...] = ()
    """Class names or numbers (class-conditional models)."""
    model: str = "embedded/nar-scenes"
    """embedded/NAME or a pipeline's folder."""
    lora: tuple[str, ...] = ()
    """A LoRA of `align nar align` (a file, folder, run or Hub id), optionally =WEIGHT."""
    num_images: int = 1
    """Images per prompt or class."""
    best_of: int = 1
    """Draw this many for each image and keep the best by --reward."""
    reward: str | None = None
    """Score the images: a reward expression such as scenes-clip=1,scenes-vqa=1."""
    guidance_scale: float | None = None
    """Classifier-free guidance, at least 1 (default: the model's own)."""
    temperature: float | None = None
    """Divides the logits; 0 is greedy (default: the model's own)."""
    top_k: int | None = None
    """Keep the k most probable tokens; 0 keeps all (default: the model's own)."""
    top_p: float | None = None
    """Keep the smallest set of tokens of this probability (default: the model's own)."""
    grid: str | None = None
    """Check that the model draws HxW tokens (clips: TxHxW)."""
    num_frames: int | None = None
    """Check that the model draws clips of this many frames."""
    height: int | None = None
    """Check that the model draws this many pixels down."""
    width: int | None = None
    """Check that the model draws this many pixels across."""
    clip_format: Literal["gif", "mp4"] = "gif"
    """How clips are written; mp4 needs PyAV or imageio-ffmpeg."""
    fps: float = 8.0
    """Frames a second of a clip's file."""
    batch_size: int = 16
    """Images decoded together."""
    compile: bool = False
    """Compile the transformer's blocks (takes a minute, pays off for many images)."""
    seed: int = 0
    """Image i of the command draws from the generator of seed + i."""
    device: str | None = None
    """cpu, cuda, cuda:1 or mps (default: the best one present)."""
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """Precision of the model (default: float32 on CPU, else bfloat16)."""
    out: str | None = None
    """The run's folder (default: runs/COMMAND-TIME)."""
    overwrite: bool = False
    """Replace a run folder that is not empty."""

    def __post_init__(self) -> None:
        """Raise ValueError where a value is out of range."""
        check(self, at_least_1=("num_images", "best_of", "batch_size", "guidance_scale"))
        check(self, at_least_1=("num_frames", "height", "width"))
        check(
            self, not_negative=("temperature", "top_k"), positive=("top_p", "fps"), unit=("top_p",)
        )
        if self.grid is not None:
            parse_grid(self.grid)
        if self.best_of > 1 and not self.reward:
            raise ValueError("best_of needs a reward to choose by")


@dataclass(frozen=True, kw_only=True)
class NarTokenizerConfig:
    """Train an image tokenizer: pictures to a grid of token ids and back."""

    data: str = ""
    """A folder of pictures (any depth), webdataset .tar files, or a `datasets` name or folder."""
    image_size: int = 64
    """Pictures are resized and centre-cropped to this many pixels a side."""
    patch: int = 4
    """Pixels a side of a token: 2, 4, 8 or 16."""
    width: int = 24
    """Channels at full size; doubled at every halving, up to 4 times."""
    context: int = 0
    """Encoder blocks that look at neighbouring patches (0: equal patches get equal codes)."""
    quantizer: Literal["fsq", "vq"] = "fsq"
    """fsq has no codebook to collapse; vq learns one."""
    levels: tuple[int, ...] = (8, 5, 5, 5)
    """Levels per dimension of fsq; their product is the number of codes."""
    codebook_size: int = 1024
    """Codes of vq."""
    steps: int = 400
    """Optimizer updates."""
    batch_size: int = 16
    """Pictures per update."""
    learning_rate: float = 2e-3
    """Peak of the cosine schedule (AdamW)."""
    ema_decay: float = 0.995
    """Decay of the weights' moving average; 0 keeps the last weights."""
    checkpoint_every: int = 200
    """Updates between checkpoints."""
    keep_checkpoints: int = 2
    """Checkpoints to keep."""
    max_minutes: float | None = None
    """Stop after this time, with a checkpoint."""
    mixed_precision: Precision | None = None
    """no, bf16 or fp16 (default: bf16 where it is faster)."""
    threads: int | None = None
    """CPU threads (default: PyTorch's choice)."""
    seed: int = 0
    """Seed of weights and batches."""
    device: str | None = None
    """cpu or cuda (default: the best one present)."""
    tracker: Literal["none", "tensorboard", "wandb"] = "none"
    """Where losses go beside metrics.jsonl."""
    out: str | None = None
    """The run's folder (default: runs/COMMAND-TIME); the tokenizer lands in tokenizer/."""
    overwrite: bool = False
    """Replace a run folder that is not empty."""
    resume: str | None = None
    """Continue the run in this folder, bit-exactly."""

    def __post_init__(self) -> None:
        """Raise ValueError where a value is out of range."""
        counts = ("image_size", "width", "codebook_size", "steps", "batch_size")
        check(self, at_least_1=(*counts, "checkpoint_every", "keep_checkpoints", "threads"))
        check(self, positive=("learning_rate", "max_minutes"), unit=("ema_decay",))
        check(self, not_negative=("context",))
        if self.patch not in (2, 4, 8, 16):
            raise ValueError(f"patch is {self.patch}; it must be 2, 4, 8 or 16")
        if self.image_size % self.patch:
            raise ValueError(f"image_size is {self.image_size}; patches of {self.patch} do not fit")
        imply_out(self)


@dataclass(frozen=True, kw_only=True)
class NarTrainConfig:
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
    text_tokens: int = 32
    """Tokens of a prompt."""
    preset: Literal["paper"] | None = None
    """paper: the published class-conditional recipe (arXiv 2503.10696, NAR-B)."""
    grid: str | None = None
    """Check that the tokenizer makes HxW tokens."""
    width: int = 128
    """Width of the transformer."""
    num_layers: int = 4
    """Blocks of the trunk; the second head adds one."""
    num_heads: int = 2
    """Attention heads."""
    branch_depth: int = 0
    """Trunk blocks before the end at which the second head's block branches off (0: stacked)."""
    fusion: Literal["mean", "scalar", "gate"] = "mean"
    """How the heads' logits are mixed."""
    decoding: Literal["wavefront", "raster", "parallel"] = "wavefront"
    """NAR's order, or a baseline: raster, or PAR-4x."""
    cond_rope: Literal["identity", "zero"] = "identity"
    """Rotary table of condition tokens; zero is that of the published checkpoints."""
    head_loss: float = 0.0
    """Weight of an additional cross-entropy per head."""
    dropout: float = 0.1
    """On embeddings, attention and feed-forward outputs."""
    condition_dropout: float = 0.1
    """Share of conditions replaced by none, for guidance."""
    flip: bool = False
    """Mirror half of the pictures (not where left and right matter)."""
    steps: int = 500
    """Optimizer updates."""
    batch_size: int = 16
    """Pictures per update over all processes."""
    micro_batch_size: int | None = None
    """Pictures per forward pass of a process (default: its whole share)."""
    learning_rate: float = 1e-3
    """Peak learning rate (AdamW, betas 0.9 and 0.95)."""
    lr_schedule: Literal["cosine", "paper-steps", "constant"] = "cosine"
    """paper-steps: times 0.2 at 1/2, 2/3 and 5/6 of the run."""
    warmup_steps: int = 20
    """Updates of linear warm-up."""
    weight_decay: float = 0.05
    """On all tensors of two or more dimensions."""
    max_grad_norm: float = 1.0
    """Clips the gradient's norm."""
    ema_decay: float = 0.995
    """Decay of the weights' moving average; 0 keeps the last weights."""
    sample_every: int = 0
    """Updates between sample sheets in images/; 0 makes one at the end."""
    checkpoint_every: int = 200
    """Updates between checkpoints."""
    keep_checkpoints: int = 2
    """Checkpoints to keep."""
    max_minutes: float | None = None
    """Stop after this time, with a checkpoint."""
    checkpointing: bool = False
    """Recompute activations in the backward pass, to save memory."""
    compile: bool = False
    """Compile the transformer's blocks."""
    mixed_precision: Precision | None = None
    """no, bf16 or fp16 (default: bf16 where it is faster)."""
    threads: int | None = None
    """CPU threads (default: PyTorch's choice)."""
    seed: int = 0
    """Seed of weights, batches and dropout."""
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
    filled: InitVar[dict[str, Any] | None] = None  # for dataclasses.replace alone

    def __new__(cls, **given: Any):
        """Remember what was given: a preset fills only the rest."""
        config = super().__new__(cls)
        object.__setattr__(config, "given", given)
        return config

    def __post_init__(self, filled: dict[str, Any] | None) -> None:
        """Apply the preset; raise ValueError where a value is out of range."""
        fill_in(self, PRESETS, filled)
        counts = ("text_tokens", "width", "num_layers", "num_heads", "steps", "batch_size")
        more = ("micro_batch_size", "checkpoint_every", "keep_checkpoints", "threads")
        check(self, at_least_1=(*counts, *more))
        check(self, positive=("learning_rate", "max_grad_norm", "max_minutes"))
        check(self, not_negative=("head_loss", "weight_decay", "warmup_steps", "sample_every"))
        check(self, unit=("dropout", "condition_dropout", "ema_decay"))
        if self.grid is not None:
            parse_grid(self.grid)
        imply_out(self)


del NarTrainConfig.__annotations__["filled"]  # it is no setting
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
