"""What `align rewards` lists: name, what it measures, range, weights, licence, size, installed."""

from dataclasses import dataclass
from pathlib import Path

from align.rewards import JUDGES, LOADERS

WEIGHTS = Path(__file__).parent.parent / "embedded" / "rewards"

# name -> (what it measures, range); every name of LOADERS and JUDGES is here
DESCRIPTIONS = {
    "jpeg": ("minus the size as a JPEG file at quality 95, estimated, in kB", "< 0"),
    "jpeg-complexity": ("size as a JPEG file at quality 95, estimated, in kB", "> 0"),
    "scenes-clip": ("2.5 cos(image, prompt) of a contrastive dual encoder", "-2.5 to 2.5"),
    "scenes-count": ("mean log-likelihood of the stated numbers of objects", "-9.2 to 0"),
    "scenes-preference": ("which of two pictures fits a prompt better", "unbounded"),
    "scenes-vqa": ("mean log p(yes) over the prompt's yes/no assertions", "< 0"),
    "verifier": ("every stated fact holds and nothing else is there", "0 or 1"),
    "verifier-partial": ("share of stated facts that hold", "0 to 1"),
}


@dataclass(frozen=True)
class Listed:
    """One line of the listing. `weights` and `licence` are None where there are no weights."""

    name: str
    measures: str
    range: str
    weights: Path | None
    licence: str | None
    size: int
    """Bytes of its own weight files."""
    installed: bool
    judge_only: bool


def list_rewards() -> list[Listed]:
    """Everything that a reward or judge expression can name, rewards first."""
    return [_listed(name, judge_only=False) for name in LOADERS] + [
        _listed(name, judge_only=True) for name in JUDGES
    ]


def _listed(name: str, judge_only: bool) -> Listed:
    measures, scale = DESCRIPTIONS[name]
    if not name.startswith("scenes-"):
        return Listed(name, measures, scale, None, None, 0, True, judge_only)
    folder = WEIGHTS / name
    files = list(folder.rglob("*.safetensors"))
    size = sum(file.stat().st_size for file in files)
    return Listed(name, measures, scale, folder, "CC0-1.0", size, bool(files), judge_only)
