"""A program for Foedus: what is trained, and on which loss. The platform does the rest.

Change `build` and `loss`, then run `foedus program check .` here; it says in plain words what is
wrong. Files beside this one are part of the program and can be imported.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional


def build(features: tuple[int, ...], classes: int, width: int = 32) -> nn.Module:
    """Return the untrained model.

    Arguments come from `program.config` of the job. `features` (the shape of one example) and
    `classes` are filled in from the data if you name them here; leave them out if you do not care.
    """
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(torch.Size(features).numel(), width),
        nn.ReLU(),
        nn.Linear(width, classes),
    )


def loss(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Return the mean loss of one batch of examples x and labels y, as one number."""
    x, y = batch
    return functional.cross_entropy(model(x), y)


# You may also define, under just these names:
#
# - evaluate, of a model and a batch: a dict of metrics of the batch, such as {"top_3": 0.93},
#   declared in program.toml; the platform takes their mean over all examples.
# - optimizer, of a model and the job's `local`: a torch.optim.Optimizer in place of the job's.
# - train, of a model, data and config: your own loop over data.x and data.y; config has epochs,
#   batch_size, lr, optimizer, seed and hooks.penalty(model).
