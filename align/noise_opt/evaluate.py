"""Images, scores and gradients for an `Ask`: the only place where a search meets the models."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from align.config.budget import Purse
from align.noise_opt.objective import Objective
from align.noise_opt.paint import Painter
from align.noise_opt.records import Answer, Pull
from align.rewards.groups import comparing


@dataclass(frozen=True)
class Evaluator:
    """Answers for one prompt; every pass is counted in the purse."""

    paint: Painter
    objective: Objective
    prompt: str
    metadata: dict[str, Any] | None
    purse: Purse
    batch_size: int
    clip: float = 0.0
    """L2 bound on each term's gradient on the image, for "image"; 0 leaves it."""

    def __call__(
        self, noise: Float[Tensor, "n c h w"], pull: Pull | None = None, stop: int | None = None
    ) -> Answer:
        """Images of these noises with their scores, `batch_size` at a time; `stop` as in `Ask`."""
        parts = noise.detach().split(self.batch_size)
        if comparing(self.objective.reward.functions):  # all images are scored together
            self.purse.generator_forwards += len(noise)
            with torch.no_grad():
                images = torch.cat([self.paint(part) for part in parts])
            return Answer(images, *self.score(images), None)
        if stop is None:
            answers = [self._batch(part, pull) for part in parts]
        else:
            answers = [self._preview(part, stop) for part in parts]
        gradients = [a.gradients for a in answers if a.gradients is not None]
        return Answer(
            images=torch.cat([a.images for a in answers]),
            terms={n: torch.cat([a.terms[n] for a in answers]) for n in answers[0].terms},
            totals=torch.cat([a.totals for a in answers]),
            gradients=torch.cat(gradients, dim=1) if gradients else None,
        )

    def _preview(self, noise: Tensor, stop: int) -> Answer:
        self.purse.preview_steps += stop * len(noise)
        with torch.no_grad():
            images = self.paint(noise, stop)
        return Answer(images, *self.score(images), None)

    def _batch(self, noise: Tensor, pull: Pull | None) -> Answer:
        # With "exact" a batch holds every noise once a term, so that one backward pass serves all.
        repeats = len(self.objective.pulled) if pull == "exact" else 1
        self.purse.generator_forwards += repeats * len(noise)
        if pull is None:
            with torch.no_grad():
                images = self.paint(noise)
            return Answer(images, *self.score(images), None)
        with torch.enable_grad():
            leaf = noise.repeat(repeats, 1, 1, 1).requires_grad_(True)
            painted = self.paint(leaf)
        images, broken = _mended(painted[: len(noise)].detach())
        with torch.enable_grad():
            pixels = images.requires_grad_(True)
            terms = self._terms(pixels)
            losses = [
                -part.value(self.objective.reward, terms).sum() for part in self.objective.pulled
            ]
            slopes = [torch.autograd.grad(loss, pixels, retain_graph=True)[0] for loss in losses]
        self.purse.reward_backwards += len(noise)
        terms = {name: score.detach() for name, score in terms.items()}
        signs = self._signs(pull).to(images)
        gradients = self._pull_back(pull, painted, leaf, signs * torch.stack(slopes))
        gradients = signs.to(noise) * gradients.reshape(-1, *noise.shape)
        images = images.detach()
        return Answer(images, terms, self._totals(terms, broken), gradients)

    def score(
        self, images: Float[Tensor, "n 3 height width"]
    ) -> tuple[dict[str, Float[Tensor, " n"]], Float[Tensor, " n"]]:
        """Terms and totals of images, without gradient."""
        with torch.no_grad():
            images, broken = _mended(images)
            terms = self._terms(images)
            return terms, self._totals(terms, broken)

    def _terms(self, images: Tensor) -> dict[str, Tensor]:
        count = len(images)
        self.purse.reward_forwards += count
        metadata = None if self.metadata is None else [self.metadata] * count
        return self.objective.reward.terms(images, [self.prompt] * count, metadata)

    def _totals(self, terms: dict[str, Tensor], broken: Tensor) -> Tensor:
        totals = self.objective.total(terms).to(broken.device)
        return totals.masked_fill(broken | ~totals.isfinite(), -torch.inf)

    def _signs(self, pull: Pull) -> Float[Tensor, "k 1 1 1 1"]:
        """With which sign each term goes back through the generator: where terms go apart, that of
        its weight, as the clamp to [0, 1] lets pass what descent on a loss needs."""
        if pull not in ("exact", "per-term"):
            return torch.ones(1, 1, 1, 1, 1)
        weights = torch.tensor([part.weight for part in self.objective.pulled])
        return weights.sign().view(-1, 1, 1, 1, 1)

    def _pull_back(
        self,
        pull: Pull,
        painted: Float[Tensor, "m 3 height width"],
        noise: Float[Tensor, "m c h w"],
        slopes: Float[Tensor, "k n 3 height width"],
    ) -> Float[Tensor, "passes m c h w"]:
        """Gradients on the image to gradients on the noise: one backward pass, or one a term."""
        slopes = slopes.to(painted)
        if pull == "image":
            slopes = clipped(slopes.flatten(0, 1), self.clip).view_as(slopes)
        if pull in ("sum", "image"):
            weights = [part.weight for part in self.objective.pulled]
            row = torch.tensor(weights, dtype=slopes.dtype, device=slopes.device)
            slopes = torch.tensordot(row, slopes, 1)[None]
        if pull == "exact":
            slopes = slopes.flatten(0, 1)[None]
        self.purse.generator_backwards += len(slopes) * len(noise)
        passes = [
            torch.autograd.grad(painted, noise, slope, retain_graph=index + 1 < len(slopes))[0]
            for index, slope in enumerate(slopes)
        ]
        return torch.stack(passes)


def clipped(gradients: Float[Tensor, "n *shape"], bound: float) -> Float[Tensor, "n *shape"]:
    """Each row at an L2 norm of at most `bound`, as `clip_grad_norm_` does; 0 leaves them."""
    if bound == 0:
        return gradients
    norms = gradients.flatten(1).norm(dim=1)
    factors = (bound / (norms + 1e-6)).clamp(max=1.0)
    return gradients * factors.view(-1, *[1] * (gradients.ndim - 1))


def _mended(images: Tensor) -> tuple[Tensor, Tensor]:
    """Grey in place of images that are not finite, and which those are."""
    broken = ~images.flatten(1).isfinite().all(1)
    if broken.any():
        images = images.clone()
        images[broken] = 0.5
    return images, broken
