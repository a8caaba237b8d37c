"""pfl-research's simulator on the task of ``benchmarks.simulator``, as its own users would run it.

It runs in an environment of its own, in as many processes as there are workers, by torch's
launcher, which pfl-research uses to divide a cohort:

    uv venv /tmp/pfl && uv pip install -p /tmp/pfl/bin/python pfl==0.6.0 torch==2.13.0
    /tmp/pfl/bin/python -m torch.distributed.run --nproc-per-node 4 benchmarks/pfl_peer.py TASK

TASK is JSON of ``benchmarks.simulator.Task``. The first process prints the clients a second of each
repetition as JSON. Nothing here imports Foedus.

Source: Granqvist et al., "pfl-research: simulation framework for accelerating research in Private
Federated Learning", NeurIPS 2024 (Datasets and Benchmarks), arXiv:2404.06430; its benchmark for
CIFAR10 in PyTorch is the pattern.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

import numpy as np
import torch
from pfl.aggregate.simulate import SimulatedBackend
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.callback.base import TrainingProcessCallback
from pfl.data.dataset import Dataset
from pfl.data.federated_dataset import FederatedDataset
from pfl.data.sampling import get_user_sampler
from pfl.hyperparam import NNTrainHyperParams
from pfl.metrics import Metrics
from pfl.model.pytorch import PyTorchModel
from torch import nn


class Mlp(nn.Module):
    """The model of ``workflows.programs.digits_mlp``."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))

    def loss(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Cross entropy."""
        return nn.functional.cross_entropy(self.layers(x), y)

    def metrics(self, x: torch.Tensor, y: torch.Tensor) -> dict[str, Any]:
        """None: this is about training."""
        return {}


class Clock(TrainingProcessCallback):  # type: ignore[misc]  # pfl is not in this environment
    """When each central iteration ended."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def after_central_iteration(
        self,
        aggregate_metrics: Metrics,
        model: PyTorchModel,
        *,
        central_iteration: int,
    ) -> tuple[bool, Metrics]:
        """Note the time, and go on."""
        self.ends.append(time.perf_counter())
        return False, Metrics()


def main(task: dict[str, Any]) -> None:
    """Run the task and print its rates."""
    torch.set_num_threads(1)
    data = np.load(task["data"])
    x, y = torch.from_numpy(data["x"]), torch.from_numpy(data["y"])

    def make_dataset(user: int) -> Dataset:
        rows = np.random.default_rng(user).integers(len(y), size=task["examples"])
        return Dataset(raw_data=[x[rows], y[rows]])

    users = range(task["sites"])
    module = Mlp()
    model = PyTorchModel(module, torch.optim.SGD, torch.optim.SGD(module.parameters(), lr=1.0))
    rounds = 1 + task["repetitions"] * task["rounds_each"]
    clock = Clock()
    FederatedAveraging().run(
        algorithm_params=NNAlgorithmParams(
            central_num_iterations=rounds,
            evaluation_frequency=rounds + 1,
            train_cohort_size=task["cohort"],
            val_cohort_size=None,
        ),
        backend=SimulatedBackend(
            training_data=FederatedDataset(make_dataset, get_user_sampler("random", users)),
            val_data=None,
        ),
        model=model,
        model_train_params=NNTrainHyperParams(
            local_batch_size=task["batch_size"],
            local_num_epochs=1,
            local_learning_rate=0.05,
        ),
        callbacks=[clock],
    )
    if int(os.environ.get("RANK", "0")) == 0:
        each, clients = task["rounds_each"], task["rounds_each"] * task["cohort"]
        ends = clock.ends
        rates = [clients / (ends[k + each] - ends[k]) for k in range(0, rounds - 1, each)]
        print("\n" + json.dumps(rates), flush=True)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
