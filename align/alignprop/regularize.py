"""What keeps a reward from running away with the model: the distance to the base."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from align.diffusion.denoisers import Denoiser


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
