"""A small convolutional network for the handwritten digits (8 x 8 pixels from 0 to 1)."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional


def build(width: int = 16, classes: int = 10) -> nn.Module:
    """Two convolutions and two dense layers; ``width`` is the number of channels of the first."""
    return nn.Sequential(
        nn.Unflatten(1, (1, 8, 8)),
        nn.Conv2d(1, width, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(width, 2 * width, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(2 * width * 4 * 4, 2 * width),
        nn.ReLU(),
        nn.Linear(2 * width, classes),
    )


def loss(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Cross entropy, in nats."""
    x, y = batch
    return functional.cross_entropy(model(x), y)
