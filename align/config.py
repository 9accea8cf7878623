"""The settings of every command, as frozen dataclasses. Standard library only.

The string under a field is its help text on the command line. Ranges are checked when a
config is made: a ValueError states the value and what is allowed. Papers' published values
are in `align.presets`; the defaults here suit the embedded models.
"""

from dataclasses import dataclass
from typing import Literal

from align.checks import Attention, Dtype, check
from align.optimize_config import OptimizeConfig as OptimizeConfig
from align.optimize_config import OptimizeRunConfig as OptimizeRunConfig
from align.train_config import TrainConfig as TrainConfig


@dataclass(frozen=True, kw_only=True)
class GenerateConfig:
    """Images from prompts, with or without LoRA."""

    prompt: tuple[str, ...] = ()
    """Prompts, as plain arguments."""
    prompts: str | None = None
    """A built-in prompt set, or a text (one prompt a line), CSV, TSV, JSONL or JSON file."""
    model: str = "embedded/scenes"
    """embedded/NAME, a diffusers folder, a single-file checkpoint or a Hub id."""
    lora: tuple[str, ...] = ()
    """embedded/NAME, a LoRA file, folder, run or Hub id, with an optional =WEIGHT; repeatable."""
    reward: str | None = None
    """Score the images: a reward expression such as scenes-clip=1,scenes-vqa=1."""
    num_images: int = 1
    """Images per prompt."""
    negative_prompt: str | None = None
    """What the images should not show."""
    height: int | None = None
    """Height in pixels (default: the model's own)."""
    width: int | None = None
    """Width in pixels (default: the model's own)."""
    noise: str | None = None
    """Start from the noise of this safetensors file (key `noise`)."""
    scheduler: str | None = None
    """Sampler: a diffusers class such as DDIMScheduler, or NAME:KEY=VALUE,… (default: the
    model's own)."""
    num_inference_steps: int | None = None
    """Denoising steps (default: the pipeline's own)."""
    guidance_scale: float | None = None
    """Classifier-free guidance (default: the pipeline's own)."""
    eta: float = 0.0
    """Share of fresh noise in a DDIM step, 0 to 1; other samplers refuse it."""
    batch_size: int = 8
    """Images per forward pass."""
    seed: int = 0
    """Image i of the command starts from the noise of seed + i."""
    device: str | None = None
    """cpu, cuda, cuda:1 or mps (default: the best one present)."""
    dtype: Dtype | None = None
    """Precision of the model (default: float32 on CPU, else the weights' own)."""
    attention: Attention = "auto"
    """Attention implementation; auto takes xformers where it can run, else sdpa."""
    out: str | None = None
    """The run's folder (default: runs/COMMAND-TIME)."""
    overwrite: bool = False
    """Replace a run folder that is not empty."""

    def __post_init__(self) -> None:
        """Raise ValueError where a value is out of range."""
        check(self, at_least_1=("num_images", "num_inference_steps", "height", "width"))
        check(self, at_least_1=("batch_size",), not_negative=("guidance_scale",), unit=("eta",))


@dataclass(frozen=True, kw_only=True)
class LoraFilesConfig:
    """LoRA files: mixed by their weight deltas, in another layout, or merged into the model."""

    source: tuple[str, ...] = ()
    """LoRAs: files, folders, runs or Hub ids, each optionally =WEIGHT (negative ones too)."""
    format: Literal["kohya", "diffusers"] = "kohya"
    """Layout of an export; kohya's is also that of A1111 and ComfyUI."""
    model: str | None = None
    """The model they are for (export and merge take that of the LoRA's run if None)."""
    out: str | None = None
    """The folder to write (default: runs/COMMAND-TIME)."""
    overwrite: bool = False
    """Replace a run folder that is not empty."""

    def __post_init__(self) -> None:
        """Raise ValueError where a value is out of range."""
        check(self)


@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """The web demo."""

    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 lets other machines in."""
    port: int | None = None
    """Port to listen on (default: the first free one from 7860)."""
    share: bool = False
    """Also make a public link through Gradio's servers."""
    auth: str | None = None
    """USER:PASSWORD that visitors have to give."""
    allow_any_model: bool = False
    """Let visitors name any model and LoRA: folders of this machine and Hub ids."""

    def __post_init__(self) -> None:
        """Raise ValueError where a value is out of range."""
        if self.port is not None and not 1 <= self.port <= 65535:
            raise ValueError(f"port is {self.port}; it must be from 1 to 65535")
        if self.auth is not None and not all(self.auth.partition(":")):
            raise ValueError(f"auth is {self.auth!r}; it must be USER:PASSWORD")


@dataclass(frozen=True, kw_only=True)
class QuickstartConfig:
    """The main jobs on the embedded models: train a LoRA to a style, then compare what makes more
    pictures right; one report."""

    minutes: float = 5.0
    """Time for all of it; a machine too slow for that does less of each part, but never fewer than
    20 updates and a prompt a category."""
    seed: int = 0
    """Seed of the training and of all pictures."""
    device: str | None = None
    """cpu, cuda, cuda:1 or mps (default: the best one present)."""
    out: str | None = None
    """The run's folder (default: runs/quickstart; a former one is kept under its date)."""
    overwrite: bool = False
    """Replace a run folder that is not empty."""

    def __post_init__(self) -> None:
        """Raise ValueError where a value is out of range."""
        check(self, positive=("minutes",))
