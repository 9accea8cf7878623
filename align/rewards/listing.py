"""What `align rewards` lists: name, what it measures, range, weights, licence, size, installed."""

from dataclasses import dataclass
from pathlib import Path

from align.rewards import JUDGES, LOADERS
from align.rewards.catalogue import PUBLISHED
from align.rewards.weights import missing_files

WEIGHTS = Path(__file__).parent.parent / "embedded" / "rewards"

# name -> (what it measures, range); every name of LOADERS and JUDGES is here
DESCRIPTIONS = {
    "aesthetic": ("how much people like the picture, whatever the prompt", "about 1 to 10"),
    "blip-vqa": ("product of p(yes) over the prompt's noun phrases", "0 to 1"),
    "clip": ("100 cos(image, prompt) of a CLIP", "-100 to 100"),
    "da-score": ("mean p(yes) over the prompt's assertions", "0 to 1"),
    "detector": ("objects that are there, are not, or are so many", "at most 0"),
    "hps": ("human preference score v2.1, cos(image, prompt)", "-1 to 1"),
    "image-reward": ("what experts prefer, in standard deviations", "unbounded"),
    "jpeg": ("minus the size as a JPEG file at quality 95, estimated, in kB", "< 0"),
    "jpeg-complexity": ("size as a JPEG file at quality 95, estimated, in kB", "> 0"),
    "nsfw": ("whether the picture is safe for work, a judge", "about 0 to 1"),
    "mps": ("human preference, of a picture that read the prompt", "-100 to 100"),
    "pickscore": ("what users pick, about 100 cos(image, prompt)", "-100 to 100"),
    "scenes-clip": ("2.5 cos(image, prompt) of a contrastive dual encoder", "-2.5 to 2.5"),
    "scenes-detector": ("a detector's findings against what the prompt states", "at most 0"),
    "scenes-preference": ("which of two pictures fits a prompt better", "unbounded"),
    "scenes-taste": (
        "large objects, apart, in full colours, on light even ground",
        "about 0 to 6.5",
    ),
    "scenes-vqa": ("mean log p(yes) over the prompt's yes/no assertions", "< 0"),
    "taste": ("the same as scenes-taste, exactly, by the verifier's reader", "0 to 6.5"),
    "vqascore": ("p(yes) that the picture shows the prompt, CLIP-FlanT5", "0 to 1"),
    "verifier": ("every stated fact holds and nothing else is there", "0 or 1"),
    "verifier-partial": ("share of stated facts that hold", "0 to 1"),
}


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
    return [_listed(name, judge_only=False) for name in LOADERS] + [
        _listed(name, judge_only=True) for name in JUDGES
    ]


def _listed(name: str, judge_only: bool) -> Listed:
    measures, scale = DESCRIPTIONS[name]
    published = PUBLISHED.get(name, ())
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
