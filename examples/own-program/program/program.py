"""A small network for tables of positive measures, such as scikit-learn's breast-cancer set."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

Batch = tuple[torch.Tensor, torch.Tensor]


class LogTable(nn.Module):
    """Two dense layers on the normalised logarithm of the features.

    The measures reach from thousandths to thousands. Nobody may compute their mean and spread over
    all sites beforehand, so a logarithm tames them and batch normalisation does the rest: its
    running statistics are averaged like every other array of the model.
    """

    def __init__(self, num_features: int, classes: int, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.BatchNorm1d(num_features),
            nn.Linear(num_features, width),
            nn.ReLU(),
            nn.Linear(width, classes),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(torch.log(x + 1e-3))


def build(features: tuple[int, ...], classes: int, width: int = 32) -> nn.Module:
    """The untrained model; `width` may be set by the job as `config: {width: 64}`."""
    return LogTable(features[0], classes, width)


def loss(model: nn.Module, batch: Batch) -> torch.Tensor:
    """Cross entropy, in nats."""
    x, y = batch
    return functional.cross_entropy(model(x), y)


def evaluate(model: nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
    """The Brier score, declared in program.toml: mean squared error of the probabilities."""
    x, y = batch
    probabilities = model(x).softmax(dim=1)
    truth = functional.one_hot(y, probabilities.shape[1])
    return {"brier": (probabilities - truth).square().sum(dim=1).mean()}
