"""Settings of the whole suite."""

import jaxtyping
import pytest
import torch
from hypothesis import settings

# Time limits per example say nothing about the code on a machine that is busy with other work.
settings.register_profile("align", deadline=None)
settings.load_profile("align")


@pytest.fixture
def unchecked():
    """Types and shapes are not checked in a test that gives wrong ones, to see them refused."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture
def float64_stays(monkeypatch):
    """Make casts to float32 leave float64 alone.

    Models and schedulers cast so for the sake of halves; here it would only add rounding noise
    to the finite differences.
    """
    single, to = torch.Tensor.float, torch.Tensor.to

    def kept_to(self, *arguments, **settings):
        asked = (*arguments, *settings.values())
        if self.dtype == torch.float64 and any(value is torch.float32 for value in asked):
            return self
        return to(self, *arguments, **settings)

    monkeypatch.setattr(torch.Tensor, "to", kept_to)
    monkeypatch.setattr(
        torch.Tensor, "float", lambda self: self if self.dtype == torch.float64 else single(self)
    )
