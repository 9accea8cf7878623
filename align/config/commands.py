"""The settings of the smaller commands, as frozen dataclasses.

The string under a field is its help text on the command line. Ranges are checked when a
config is made: a ValueError states the value and what is allowed. Papers' published values
are in `align.config.presets`; the defaults here suit the embedded models.
"""

from dataclasses import dataclass
from typing import Literal

from align.config.checks import Count, CountOr0, Positive, check
from align.config.groups import (
    Arithmetic,
    Device,
    Drawing,
    Frames,
    Gradient,
    Pipeline,
    Prompts,
    RunFolder,
    Sampling,
    Size,
)

What = Literal["noise", "latents"]


@dataclass(frozen=True, kw_only=True)
class GenerateConfig(
    Prompts, Pipeline, Drawing, Sampling, Size, Frames, Device, Arithmetic, RunFolder
):
    """Images from prompts, with or without LoRA."""

    num_images: Count = 1
    """Images per prompt."""
    noise: str | None = None
    """Start from the noise of this safetensors file (key `noise`)."""
    seed: int = 0
    """Image i of the command starts from the noise of seed + i."""

    def __post_init__(self) -> None:
        """Raise ValueError where a value is out of range."""
        check(self)


@dataclass(frozen=True, kw_only=True)
class LoraFilesConfig(RunFolder):
    """LoRA files: mixed by their weight deltas, in another layout, or merged into the model."""

    source: tuple[str, ...] = ()
    """LoRAs: files, folders, runs or Hub ids, each optionally =WEIGHT (negative ones too)."""
    format: Literal["kohya", "diffusers"] = "kohya"
    """Layout of an export; kohya's is also that of A1111 and ComfyUI."""
    model: str | None = None
    """The model they are for (export and merge take that of the LoRA's run if None)."""
    out: str | None = None
    """The folder to write (default: runs/COMMAND-TIME)."""

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
class QuickstartConfig(Device, RunFolder):
    """The main jobs on the embedded models: train a LoRA to a style, then compare what makes more
    pictures right; one report."""

    minutes: Positive = 5.0
    """Time for all of it; a machine too slow for that does less of each part, but never fewer than
    20 updates and a prompt a category."""
    seed: int = 0
    """Seed of the training and of all pictures."""
    out: str | None = None
    """The run's folder (default: runs/quickstart; a former one is kept under its date)."""

    def __post_init__(self) -> None:
        """Raise ValueError where a value is out of range."""
        check(self)


@dataclass(frozen=True, kw_only=True)
class CalibrateConfig(Device):
    """How rewards agree with ratings, by category: correlations, proposed weights, a picture."""

    source: tuple[str, ...] = ()
    """DATA: a CSV or JSONL file with columns image, prompt, rating and, if known, category."""
    reward: str = ""
    """The rewards to measure, as an expression; weights in it do not matter."""
    out: str = "table.json"
    """The table to write; a picture of it goes beside it, as PNG."""
    overwrite: bool = False
    """Replace a table that exists."""
    seed: CountOr0 = 0
    """Seed of the bootstrap and the folds."""

    def __post_init__(self) -> None:
        """Raise ValueError where a value is out of range."""
        check(self)


@dataclass(frozen=True, kw_only=True)
class ExplainConfig(Device):
    """Why a score is low: how probably each fact that a prompt states holds in a picture."""

    source: tuple[str, ...] = ()
    """PROMPT PICTURE...: what was asked for, and picture files."""
    reward: str = "scenes-detector"
    """The reward that says so: scenes-detector, scenes-vqa, da-score, blip-vqa."""


@dataclass(frozen=True, kw_only=True)
class FetchConfig:
    """Download the weights of published rewards; an interrupted download goes on where it was."""

    source: tuple[str, ...] = ()
    """NAME…: rewards, as in an expression: hps, hps:2.0, clip:OWNER/NAME, carinox, hps=1,clip=2."""
    list: bool = False
    """List what can be fetched: repositories, files, sizes, licences, checksums."""
    check: bool = False
    """Compare what is here with its checksums, without a network (all rewards if none is named)."""

    def __post_init__(self) -> None:
        """Raise ValueError where options exclude each other."""
        if self.list and (self.check or self.source):
            raise ValueError("--list takes no names and no --check")


@dataclass(frozen=True, kw_only=True)
class StressConfig(Pipeline, Sampling, Size, Gradient, Device, Arithmetic, RunFolder):
    """How far a reward can be raised before a judge that is not optimized falls."""

    reward: str = ""
    """What the ascent raises: a reward expression."""
    judge: str | None = None
    """What judges: a reward expression that is not optimized (default: the verifier)."""
    what: What = "noise"
    """What is moved: the noise, through the sampler, or the final latents before the decoder."""
    steps: Count = 12
    """Steps of each ascent."""
    step_length: Positive = 1 / 64
    """Length of a step, as a share of the noise's (or the latents') own."""
    model: str = "embedded/scenes-turbo"
    prompts: str | None = None
    """A built-in prompt set, or a text (one prompt a line), CSV or JSONL file."""
    num_prompts: Count = 90
    """So many of the prompts, evenly spread over the set; one picture each."""
    batch_size: Count = 16
    """Prompts per forward and backward pass."""
    seed: CountOr0 = 0
    """Prompt i starts from the noise of seed + i."""

    def __post_init__(self) -> None:
        """Raise ValueError where a value is out of range."""
        check(self)
