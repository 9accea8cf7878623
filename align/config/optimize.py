"""The settings of `align.optimize` and `align optimize`. Standard library only."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from align.config.budget import parse_budget
from align.config.checks import Count, NotNegative, OneOf, Positive, Share, check, imply_out
from align.config.groups import (
    Arithmetic,
    Device,
    Gradient,
    Pipeline,
    Prompts,
    RunFolder,
    Sampling,
    Size,
)

# How the terms' gradients reach the noise: "sum" pulls the gradient of the weighted sum back;
# "image" clips each term's gradient on the image and pulls their weighted sum back; "exact" pulls
# every term back in one pass over a batch that holds each noise once a term; "per-term" in a pass
# each.
Pull = Literal["sum", "image", "per-term", "exact"]


@dataclass(frozen=True)
class SearchMethod:
    """A way to search the noise of a prompt."""

    search: str
    """module:function, which takes an `align.noise_opt.records.Setup` and asks for images."""
    does: str
    """What it does, in a few words, for lists."""
    defaults: Mapping[str, Any] = field(default_factory=dict)
    """What a setting left at None means to it: the papers' values where they have one."""
    pull: Pull | None = None
    """How it follows the terms' gradients (`Setup.pull`); None where it takes none."""
    chooses: Literal["total", "robust", "plain"] = "total"
    """The best image is that of the highest total; robust: one that a gradient made has to stay the
    best when slightly changed; plain: of the highest sum without weights."""


# Every search method: `align optimize --method`, `align compare`, the demo and the docs read this.
SEARCHES = {
    "bon": SearchMethod("align.noise_opt.explore:bon", "Best of N: draw many, keep the best",
        {"seeds": 50}),
    "zero-order": SearchMethod("align.noise_opt.explore:zero_order",
        "Zero-order: try neighbours, no gradient", {"seeds": 4, "iterations": 12}),
    "evolution": SearchMethod("align.noise_opt.explore:evolution",
        "Evolution: cross and mutate, no gradient", {"seeds": 10, "iterations": 6}),
    "reno": SearchMethod("align.noise_opt.ascend:reno", "ReNO: follow the gradient from one noise",
        {"seeds": 1, "weights": "uniform", "learning_rate": 5.0}, pull="sum"),
    "langevin": SearchMethod("align.noise_opt.ascend:langevin",
        "Langevin: follow the gradient with fresh noise", {"seeds": 1, "learning_rate": 0.8},
        pull="sum"),
    "carinox": SearchMethod("align.noise_opt.carinox:carinox",
        "CARINOX: explore, then follow the gradient", {"seeds": 32, "iterations": 12,
        "learning_rate": 20.0}, pull="image", chooses="robust"),
    "carinox-paper": SearchMethod("align.noise_opt.ascend:carinox_paper",
        "CARINOX as published: five noises in full", {"seeds": 5, "weights": "uniform",
        "learning_rate": 5.0}, pull="per-term", chooses="plain"),
}  # fmt: skip
_COMMON = {"seeds": 1, "iterations": 50, "weights": "category", "learning_rate": 5.0}


@dataclass(frozen=True, kw_only=True)
class OptimizeConfig(Sampling, Size, Gradient):
    """How `align.optimize` searches for the noise of a prompt."""

    method: Annotated[str, OneOf(SEARCHES)] = "carinox"
    """How to search; docs/noise.md has a line on each."""
    iterations: Count | None = None
    """Iterations, of each seed where seeds are optimized apart (default: the method's own)."""
    seeds: Count | None = None
    """Noises to start from (default: the method's own)."""
    budget: str | None = None
    """Stop at 30s, 200nfe or 64images; a backward counts at its measured cost."""
    weights: str | None = None
    """Weights of the reward's terms: category, uniform (the expression as it stands) or the path
    of a table (default: category; the papers' methods take uniform)."""
    category: str | None = None
    """The prompt's category, in place of the one its words tell."""
    regularizer: NotNegative = 0.01
    """Weight of the noise's prior, which keeps its length."""
    clip: NotNegative = 0.1
    """L2 bound on each term's gradient; 0 leaves it."""
    explore_share: Share | None = None
    """carinox: share of a budget that explores before it optimizes; 1 only explores (default: 0.33;
    1 from five denoising steps on, where a gradient costs as much as several candidates)."""
    exact: bool = False
    """carinox: clip the terms' gradients on the noise, not on the image; slower."""
    learning_rate: Positive | None = None
    """Step size of the gradient methods (default: the method's own)."""
    backward_cost: Positive | None = None
    """Forwards that a backward counts as (default: measured at the start)."""
    seed: int = 0
    """Seed of the noises; the first candidate is the image of align generate with it."""

    def __post_init__(self) -> None:
        """Raise ValueError where a value is out of range."""
        check(self)
        if self.budget is not None:
            parse_budget(self.budget)

    def own(self, name: str) -> Any:
        """A setting, or the method's own value where it is None."""
        value = getattr(self, name)
        return {**_COMMON, **SEARCHES[self.method].defaults}[name] if value is None else value


@dataclass(frozen=True, kw_only=True)
class OptimizeRunConfig(OptimizeConfig, Prompts, Pipeline, Device, Arithmetic, RunFolder):
    """The best noise of each prompt, searched by what a reward says of its image."""

    reward: str | None = None
    """What to maximize: a reward expression (default with embedded models:
    scenes-detector=2,scenes-clip)."""
    explain: bool = False
    """Print each prompt's category, the weights and why; search nothing."""
    best: Count = 1
    """Images to keep per prompt: best.png, best-2.png and so on, each with its noise."""
    render_model: str | None = None
    """Render the best noise with this model too, as render.png."""
    render_steps: Count | None = None
    """Render the best noise with this many steps too, as render.png."""
    resume: str | None = None
    """A run's folder to go on with: prompts that are done stay; several processes may share it."""

    def __post_init__(self) -> None:
        """Raise ValueError where a value is out of range."""
        super().__post_init__()
        imply_out(self)
