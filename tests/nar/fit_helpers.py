"""The smallest thing that `align.nar.training.fit` trains, and a gradient that is no number."""

import torch
from torch import nn

from align.nar.training.fit import make_run
from align.runs.folder import open_run


def nan_gradient(x):
    """The same tensor, whose gradient is NaN."""
    if x.requires_grad:
        x.register_hook(lambda grad: grad * float("nan"))
    return x


def linear_run(config, folder, accelerator, **settings):
    """A run of a linear layer."""
    torch.manual_seed(0)
    model = nn.Linear(3, 1)
    if accelerator.is_main_process:
        open_run(folder, config, resume=config.resume, command="nar tokenizer")
    groups = [{"params": list(model.parameters())}]
    return make_run(config, folder, accelerator, model, groups, {"data": "eight"}, **settings)
