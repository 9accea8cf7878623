"""What keeps a reward from running away with the model: distance to the base, reward scales."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from align.denoisers import Denoiser

MOMENTUM = 0.9
ROUNDING = 1e-6  # a spread below this share of the scores' size is float32's own


class DistanceToBase:
    """Collects the squared distance of predictions to the base model's.

    DRaFT+ (NeMo-Aligner): mean((eps - eps_base)^2), the Kullback-Leibler divergence of the two
    denoising steps up to a factor that depends on the timestep.
    """

    def __init__(self, denoise: Denoiser, base_model: Callable[[], AbstractContextManager[None]]):
        self.denoise = denoise
        self.base_model = base_model
        self.distances: list[Tensor] = []
        self.kept: list[Tensor] = []

    def __call__(
        self, output: Tensor, latents: Tensor, timestep: Tensor, kept: Sequence[bool]
    ) -> None:
        """Compare one prediction [b, c, h, w] with the base's for the same latents."""
        with torch.no_grad(), self.base_model():
            base = self.denoise(latents, timestep)
        precision = torch.promote_types(output.dtype, torch.float32)
        self.distances.append((output - base).to(precision).square().flatten(1).mean(1))
        self.kept.append(torch.tensor(kept, device=output.device))

    def mean(self) -> Tensor:
        """The mean over images, of each over its elements and the steps of its own window."""
        distances, kept = torch.stack(self.distances), torch.stack(self.kept)  # (steps, b)
        return ((distances * kept).sum(0) / kept.sum(0)).mean()


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
            new = (exact.mean().item(), exact.square().mean().item())
            mean, square = self.moments.get(name, new)
            self.moments[name] = (
                MOMENTUM * mean + (1 - MOMENTUM) * new[0],
                MOMENTUM * square + (1 - MOMENTUM) * new[1],
            )
