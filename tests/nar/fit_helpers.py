"""The smallest thing that `align.nar.fit` trains, and a gradient that is no number."""

import torch
from torch import nn

from align.nar.fit import make_fit
from align.run import open_run


class _NoNumber(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return grad * float("nan")


def nan_gradient(loss):
    """The same loss, whose gradient is NaN."""
    return _NoNumber.apply(loss)


def linear_fit(config, folder, accelerator):
    """A run of a linear layer."""
    torch.manual_seed(0)
    model = nn.Linear(3, 1)
    if accelerator.is_main_process:
        open_run(folder, config, resume=config.resume, command="nar tokenizer")
    groups = [{"params": list(model.parameters())}]
    return make_fit(config, folder, accelerator, model, groups, 8, {"data": "eight"})
