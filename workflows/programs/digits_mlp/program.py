"""A multilayer perceptron for the handwritten digits (64 pixels from 0 to 1)."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional


def build(width: int = 64, classes: int = 10) -> nn.Module:
    """Two dense layers with ``width`` units between them."""
    return nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, classes))


def loss(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Cross entropy, in nats."""
    x, y = batch
    return functional.cross_entropy(model(x), y)
