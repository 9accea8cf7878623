"""The fields of `align evaluate` and `align compare`. Standard library only."""

from dataclasses import dataclass

from align.config.checks import Count, CountOr0, NotNegative, check, imply_out
from align.config.groups import Arithmetic, Device, Pipeline, RunFolder, Sampling


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig(Pipeline, Sampling, Device, Arithmetic, RunFolder):
    """What evaluating and comparing have in common."""

    lora: tuple[str, ...] = ()
    """LoRAs that every method starts from, with an optional =WEIGHT; repeatable."""
    prompts: str | None = None
    """A built-in set, or a benchmark's file or folder of files (default: scenes)."""
    categories: str | None = None
    """Only these categories, joined by commas."""
    per_category: Count | None = None
    """Only the first so many prompts of each category."""
    reward: str | None = None
    """What methods that search choose by (default with embedded models:
    scenes-detector=2,scenes-clip)."""
    weights: str | None = None
    """How --reward's terms are weighed: category, uniform (as written) or a table's path (default:
    category; the papers' methods take uniform)."""
    judge: str | None = None
    """What judges: a reward expression that was not optimized (default: the verifier)."""
    also: str | None = None
    """More rewards to report (default with embedded models: the four scenes rewards)."""
    clip: str | None = None
    """A CLIP (folder or Hub id) whose features measure diversity and quality."""
    real: str | None = None
    """A folder of real pictures, for the distance of generated ones to them."""
    scheduler: str | None = None
    """Sampler: a diffusers class such as DDIMScheduler, or NAME:KEY=VALUE,… (default: the
    model's own); NAR models keep theirs."""
    guidance_scale: NotNegative | None = None
    """Classifier-free guidance (default: the pipeline's own); NAR models keep their own."""
    seed: CountOr0 = 0
    """Seed of all noises and of the bootstrap."""
    allow_busy: bool = False
    """Measure seconds even on a machine that is busy with other work."""
    resume: str | None = None
    """Continue the run in this folder; several processes may do so at once."""

    def __post_init__(self) -> None:
        """Raise ValueError where a value is out of range."""
        check(self)
        imply_out(self)


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(EvaluationConfig):
    """A benchmark over prompts, with a judge that was not optimized, intervals and pictures."""

    methods: str = "base"
    """base, lora=DIR, bon=N, reno, carinox, nar, nar=DIR, … joined by commas; lora=DIR+bon=N
    combines."""
    num_images: Count = 4
    """Images per prompt and method."""
    budget: str | None = None
    """What one image of a searching method may cost: 30s, 200nfe or 64images."""


@dataclass(frozen=True, kw_only=True)
class CompareConfig(EvaluationConfig):
    """Methods side by side at equal budgets: same prompts and seeds, paired differences."""

    methods: str = "base,bon"
    """base, lora=DIR, bon, reno, carinox, nar, nar=DIR, … joined by commas; lora=DIR+bon
    combines."""
    budget: str = "1images,4images,16images"
    """What one image may cost: 30s, 200nfe or 64images; several, joined by commas, give curves."""
    repeats: Count = 1
    """Images per prompt, method and budget."""
