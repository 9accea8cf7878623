"""Muon in float32: torch.optim.Muon orthogonalizes in bfloat16, which many CPUs only emulate."""

import torch
from torch import Tensor

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the quintic iteration, as published
ITERATIONS = 5


class Muon(torch.optim.Optimizer):
    """Momentum with orthogonalized steps (Jordan et al. 2024, kellerjordan.github.io/posts/muon).

    A step has the root mean square of an AdamW step: 0.2 (Liu et al. 2025, arXiv 2502.16982).
    """

    def __init__(self, matrices, lr: float, momentum: float = 0.95, weight_decay: float = 0.0):
        super().__init__(matrices, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        for group in self.param_groups:
            shapes: dict[torch.Size, list[Tensor]] = {}
            for matrix in group["params"]:
                shapes.setdefault(matrix.shape, []).append(matrix)
            for alike in shapes.values():
                steps = orthogonal(torch.stack([self._direction(m, group) for m in alike]))
                scale = 0.2 * max(alike[0].shape) ** 0.5
                for matrix, step in zip(alike, steps, strict=True):
                    matrix.mul_(1 - group["lr"] * group["weight_decay"])
                    matrix.add_(step, alpha=-group["lr"] * scale)

    def _direction(self, matrix: Tensor, group: dict) -> Tensor:
        """Nesterov's momentum."""
        state = self.state[matrix]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(matrix)
        buffer = state["momentum_buffer"].lerp_(matrix.grad, 1 - group["momentum"])
        return matrix.grad.lerp(buffer, group["momentum"])


def orthogonal(matrices: Tensor) -> Tensor:
    """The nearest semi-orthogonal matrices of [n, rows, columns], roughly (Newton-Schulz)."""
    a, b, c = COEFFICIENTS
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(ITERATIONS):
        square = x @ x.mT
        x = a * x + (b * square + c * square @ square) @ x
    return x.mT if tall else x
