from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from workflows.job import Adam, Sgd
from workflows.trainers.descent import descent_of

OPTIMIZERS = [
    Sgd(lr=0.1),
    Sgd(lr=0.1, momentum=0.9),
    Sgd(lr=0.1, momentum=0.5, weight_decay=0.01),
    Adam(lr=0.01),
    Adam(lr=0.01, weight_decay=0.1),
]


def torch_twin(spec: Sgd | Adam, weights: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
    if isinstance(spec, Sgd):
        return torch.optim.SGD(
            weights,
            lr=spec.lr,
            momentum=spec.momentum,
            weight_decay=spec.weight_decay,
            foreach=False,
        )
    return torch.optim.AdamW(weights, lr=spec.lr, weight_decay=spec.weight_decay, foreach=False)


@pytest.mark.parametrize("spec", OPTIMIZERS, ids=str)
def test_steps_are_those_of_torch_to_the_last_bit(spec: Sgd | Adam) -> None:
    generator = torch.Generator().manual_seed(3)
    shapes = [(4, 3), (5,), (2,)]
    start = [torch.randn(shape, generator=generator) for shape in shapes]
    ours, theirs = ([torch.nn.Parameter(w.clone()) for w in start] for _ in range(2))
    descent, twin = descent_of(spec, ours), torch_twin(spec, theirs)

    for number in range(7):
        gradients = [torch.randn(shape, generator=generator) for shape in shapes]
        if number < 2:
            gradients[2] = None  # type: ignore[call-overload]  # a layer that is not used at first
        for optimizer, weights in ((descent, ours), (twin, theirs)):
            optimizer.zero_grad()
            for weight, gradient in zip(weights, gradients, strict=True):
                weight.grad = None if gradient is None else gradient.clone()
            optimizer.step()

        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(ours, start, strict=True))


def test_training_does_not_import_the_compiler() -> None:
    code = """
import sys
import numpy as np
from strategies import ClientHalf
from workflows.data.examples import Examples
from workflows.job import Local
from workflows.programs import builtin_folder
from workflows.trainers import load_trainer

trainer = load_trainer(builtin_folder("digits-mlp"), {}, 0)
examples = Examples(np.zeros((4, 64), np.float32), np.arange(4))
trainer.train(trainer.initial(), examples, Local(), ClientHalf(proximal_mu=1.0), 1)
trainer.evaluate(trainer.initial(), examples, ["accuracy", "loss"])
sys.exit("torch._dynamo" in sys.modules)
"""

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
