"""The fields of `align rewards calibrate`. Standard library only."""

from dataclasses import dataclass

from align.checks import check


@dataclass(frozen=True, kw_only=True)
class CalibrateConfig:
    """How rewards agree with ratings, by category: correlations, proposed weights, a picture."""

    source: tuple[str, ...] = ()
    """DATA: a CSV or JSONL file with columns image, prompt, rating and, if known, category."""
    reward: str = ""
    """The rewards to measure, as an expression; weights in it do not matter."""
    out: str = "table.json"
    """The table to write; a picture of it goes beside it, as PNG."""
    overwrite: bool = False
    """Replace a table that exists."""
    device: str | None = None
    """cpu, cuda or another device of torch (default: the best there is)."""
    seed: int = 0
    """Seed of the bootstrap and the folds."""

    def __post_init__(self) -> None:
        """Raise ValueError where a value is out of range."""
        check(self, not_negative=("seed",))
