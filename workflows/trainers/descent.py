"""The job's local optimisers, without ``torch.optim``.

The arithmetic is that of torch's own classes, bit for bit (a test); but the first of those that is
made in a process imports torch's compiler, which costs each worker seconds and 80 MB.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch

from workflows.job import Adam, Sgd

BETA_1 = 0.9
BETA_2 = 0.999
EPSILON = 1e-8


class Descent(Protocol):
    """What a training loop asks of an optimiser; ``torch.optim.Optimizer`` is one."""

    def zero_grad(self) -> None: ...

    def step(self) -> object: ...


def descent_of(optimizer: Sgd | Adam, weights: Sequence[torch.nn.Parameter]) -> Descent:
    """The optimiser that a job names, over ``weights``, with no memory of earlier rounds."""
    match optimizer:
        case Sgd():
            return SgdDescent(optimizer, weights)
        case Adam():
            return AdamDescent(optimizer, weights)


class SgdDescent:
    """Stochastic gradient descent with momentum.

    Source: Sutskever et al., "On the importance of initialization and momentum in deep learning",
    ICML 2013, in torch's form: the rate is applied to the velocity, not kept in it.
    """

    def __init__(self, spec: Sgd, weights: Sequence[torch.nn.Parameter]) -> None:
        self._spec = spec
        self._weights = weights
        self._velocities: dict[int, torch.Tensor] = {}

    def zero_grad(self) -> None:
        for weight in self._weights:
            weight.grad = None

    @torch.no_grad()
    def step(self) -> None:
        spec = self._spec
        for k, weight in enumerate(self._weights):
            gradient = weight.grad
            if gradient is None:
                continue
            if spec.weight_decay:
                gradient = gradient.add(weight, alpha=spec.weight_decay)
            if spec.momentum:
                velocity = self._velocities.get(k)
                if velocity is None:
                    velocity = self._velocities[k] = gradient.clone()
                else:
                    velocity.mul_(spec.momentum).add_(gradient)
                gradient = velocity
            weight.add_(gradient, alpha=-spec.lr)


class AdamDescent:
    """Adam with decoupled weight decay.

    Source: Kingma and Ba, ICLR 2015, Algorithm 1; Loshchilov and Hutter, ICLR 2019, Algorithm 2.
    """

    def __init__(self, spec: Adam, weights: Sequence[torch.nn.Parameter]) -> None:
        self._spec = spec
        self._weights = weights
        self._moments: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self._steps = [0] * len(weights)

    def zero_grad(self) -> None:
        for weight in self._weights:
            weight.grad = None

    @torch.no_grad()
    def step(self) -> None:
        lr = self._spec.lr
        for k, weight in enumerate(self._weights):
            gradient = weight.grad
            if gradient is None:
                continue
            if k not in self._moments:
                self._moments[k] = torch.zeros_like(weight), torch.zeros_like(weight)
            m, v = self._moments[k]
            self._steps[k] += 1
            t = self._steps[k]
            weight.mul_(1 - lr * self._spec.weight_decay)
            m.lerp_(gradient, 1 - BETA_1)
            v.mul_(BETA_2).addcmul_(gradient, gradient, value=1 - BETA_2)
            root = (v.sqrt() / (1 - BETA_2**t) ** 0.5).add_(EPSILON)
            weight.addcdiv_(m, root, value=-lr / (1 - BETA_1**t))
