"""The fields of `align rewards explain`. Standard library only."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class ExplainConfig:
    """Why a score is low: how probably each fact that a prompt states holds in a picture."""

    source: tuple[str, ...] = ()
    """PROMPT PICTURE...: what was asked for, and picture files."""
    reward: str = "scenes-detector"
    """The reward that says so: scenes-detector, scenes-vqa, da-score, blip-vqa."""
    device: str | None = None
    """cpu, cuda or another device of torch (default: the best there is)."""
