"""The fields of `align fetch`. Standard library only."""

from dataclasses import dataclass


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
