"""What `align rewards` lists: name, what it measures, range, weights, licence, size, installed."""

from dataclasses import dataclass
from pathlib import Path

from align.rewards.catalogue import JUDGES, REWARDS, Named
from align.rewards.weights import missing_files

WEIGHTS = Path(__file__).parent.parent / "embedded" / "rewards"


@dataclass(frozen=True)
class Listed:
    """One line of the listing.

    `weights` is the folder of embedded weights, `licence` None where there are no weights.
    """

    name: str
    measures: str
    range: str
    weights: Path | None
    licence: str | None
    size: int
    """Bytes of its own weight files; of published ones rounded, as they are downloaded."""
    installed: bool
    judge_only: bool


def list_rewards() -> list[Listed]:
    """Everything that a reward or judge expression can name, rewards first."""
    return [_listed(name, reward, judge_only=False) for name, reward in REWARDS.items()] + [
        _listed(name, judge, judge_only=True) for name, judge in JUDGES.items()
    ]


def _listed(name: str, reward: Named, judge_only: bool) -> Listed:
    measures, scale, published = reward.measures, reward.range, reward.sources.get("", ())
    if published:
        size = sum(source.size for source in published)
        there = not any(missing_files(source) for source in published)
        licence = published[0].licence
        return Listed(name, measures, scale, None, licence, size, there, judge_only)
    if not name.startswith("scenes-"):
        return Listed(name, measures, scale, None, None, 0, True, judge_only)
    folder = WEIGHTS / name
    files = list(folder.rglob("*.safetensors"))
    size = sum(file.stat().st_size for file in files)
    return Listed(name, measures, scale, folder, "CC0-1.0", size, bool(files), judge_only)
