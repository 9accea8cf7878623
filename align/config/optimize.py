"""The settings of `align.optimize` and `align optimize`. Standard library only."""

from dataclasses import dataclass
from typing import Any, Literal

from align.config.budget import parse_budget
from align.config.checks import Count, NotNegative, Positive, Share, check, imply_out
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

Method = Literal["bon", "zero-order", "evolution", "reno", "langevin", "carinox", "carinox-paper"]

# What a setting left at None means to each method: the papers' values where they have one.
METHOD_DEFAULTS: dict[str, dict[str, Any]] = {
    "bon": {"seeds": 50},
    "zero-order": {"seeds": 4, "iterations": 12},
    "evolution": {"seeds": 10, "iterations": 6},
    "reno": {"seeds": 1, "weights": "uniform", "learning_rate": 5.0},
    "langevin": {"seeds": 1, "learning_rate": 0.8},
    "carinox": {"seeds": 32, "iterations": 12, "learning_rate": 20.0},
    "carinox-paper": {"seeds": 5, "weights": "uniform", "learning_rate": 5.0},
}
_COMMON = {"iterations": 50, "weights": "category", "learning_rate": 5.0}


@dataclass(frozen=True, kw_only=True)
class OptimizeConfig(Sampling, Size, Gradient):
    """How `align.optimize` searches for the noise of a prompt."""

    method: Method = "carinox"
    """bon, zero-order, evolution, reno, langevin, carinox or carinox-paper."""
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
        return (_COMMON | METHOD_DEFAULTS[self.method])[name] if value is None else value


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
