"""Rewards on one scale: running means and deviations of their terms."""

from torch import Tensor

MOMENTUM = 0.9
ROUNDING = 1e-6  # a spread below this share of the scores' size is float32's own


class RunningScale:
    """Running mean and standard deviation of each reward term, to put them on one scale.

    An update is scored with the figures of the updates before it, so that its result does not
    depend on how its batch was split. A term that has had no spread so far, such as that of an
    object in none of the images, has no scale yet: only its mean is taken off.
    """

    def __init__(self) -> None:
        self.moments: dict[str, tuple[float, float]] = {}

    def __call__(self, terms: dict[str, Tensor]) -> dict[str, Tensor]:
        """The terms [b] less their mean, by their deviation."""
        scaled = {}
        for name, scores in terms.items():
            mean, square = self.moments[name]
            deviation = max(square - mean**2, 0.0) ** 0.5
            known = deviation > ROUNDING * square**0.5
            scaled[name] = (scores - mean) / (deviation if known else 1.0)
        return scaled

    def update(self, terms: dict[str, Tensor]) -> None:
        """Take in the unscaled terms [b] of an update."""
        for name, scores in terms.items():
            exact = scores.cpu().double()
            exact = exact[exact.isfinite()]  # a server may have failed
            if not len(exact):
                continue
            new = (exact.mean().item(), exact.square().mean().item())
            mean, square = self.moments.get(name, new)
            self.moments[name] = (
                MOMENTUM * mean + (1 - MOMENTUM) * new[0],
                MOMENTUM * square + (1 - MOMENTUM) * new[1],
            )
