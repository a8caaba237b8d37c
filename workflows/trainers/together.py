"""Small sites trained together: one program, many copies of the model, one operation for all.

The model's trainable parameters are stacked, ``torch.func.vmap`` runs the program's own loss over
the stack, and the gradient of the sum of the losses is, site by site, the gradient of each. What
the optimiser does is entry by entry, so it steps all of them at once. Only sites with as many
examples go together: their batches have the same lengths, and nothing need be padded or masked,
which a program's own loss might not bear.

A stacked product may differ from a single one in its last bits, so which sites go together is fixed
by the cohort and not by who trains them (``workflows.groups``).

Source: Horace He and Richard Zou, ``torch.func`` (functorch), model ensembling.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch

from workflows.data.examples import Examples
from workflows.job import Local
from workflows.trainers.descent import descent_of

Loss = Callable[[torch.nn.Module, tuple[torch.Tensor, torch.Tensor]], torch.Tensor]


class _LossOf(torch.nn.Module):
    """A program's loss as a module, so that its parameters can be given from outside."""

    def __init__(self, model: torch.nn.Module, loss: Loss) -> None:
        super().__init__()
        self.model = model
        self._loss = loss

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return self._loss(self.model, (x, y)).reshape(())


class Stack:
    """Copies of a model, one for each of some sites.

    Args:
        model: In training mode, with the global parameters.
        num_sites: Copies.
        loss: Of the program.
    """

    def __init__(self, model: torch.nn.Module, num_sites: int, loss: Loss) -> None:
        self._model = model
        self._loss = _LossOf(model, loss)
        named = {name: w for name, w in model.named_parameters() if w.requires_grad}
        self.weights = {
            name: torch.nn.Parameter(w.detach().expand(num_sites, *w.shape).clone())
            for name, w in named.items()
        }
        self.origin = {name: w.detach().clone() for name, w in named.items()}

    def losses(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Each site's loss on its own batch, with a graph to differentiate."""

        def one(
            weights: Mapping[str, torch.Tensor], x: torch.Tensor, y: torch.Tensor
        ) -> torch.Tensor:
            given = {f"model.{name}": weight for name, weight in weights.items()}
            found: torch.Tensor = torch.func.functional_call(self._loss, given, (x, y))
            return found

        stacked: torch.Tensor = torch.func.vmap(one)(self.weights, x, y)
        return stacked

    def arrays(self, k: int) -> dict[str, np.ndarray]:
        """The floating-point arrays of one site's model by every name that they have."""
        first = {id(w): name for name, w in self._model.named_parameters()}
        arrays = {}
        for name, tensor in self._model.state_dict(keep_vars=True).items():
            own = first.get(id(tensor), name)
            mine = self.weights[own][k] if own in self.weights else tensor
            if mine.is_floating_point():
                arrays[name] = mine.detach().numpy().copy()
        return arrays


def descend(
    stack: Stack,
    examples: Sequence[Examples],
    local: Local,
    proximal_mu: float,
    seeds: Sequence[int],
    cut: Callable[[int], Sequence[tuple[int, int]]],
) -> tuple[list[float], int]:
    """The local epochs of all sites; each one's mean loss over the last, and the steps.

    Args:
        stack: Whose weights are trained.
        examples: Of each site, equally many.
        local: How to train.
        proximal_mu: Weight of the proximal term.
        seeds: Of each site's order of examples.
        cut: Batches of so many examples, from where to where.
    """
    weights = list(stack.weights.values())
    optimizer = descent_of(local.optimizer, weights)
    x = torch.from_numpy(np.stack([part.x for part in examples]))
    y = torch.from_numpy(np.stack([part.y for part in examples]))
    shuffles = [np.random.default_rng(seed) for seed in seeds]
    rows = torch.arange(len(examples))[:, None]
    num_examples, steps = y.shape[1], 0
    total = torch.zeros(len(examples), dtype=torch.float64)
    for _ in range(local.epochs):
        total.zero_()
        order = torch.from_numpy(np.stack([s.permutation(num_examples) for s in shuffles]))
        for start, stop in cut(num_examples):
            batch = order[:, start:stop]
            losses = stack.losses(x[rows, batch], y[rows, batch])
            found = torch.autograd.grad(losses.sum(), weights, allow_unused=True)
            for (name, weight), gradient in zip(stack.weights.items(), found, strict=True):
                weight.grad = gradient
                if gradient is not None and proximal_mu:
                    weight.grad = gradient + proximal_mu * (weight.detach() - stack.origin[name])
            optimizer.step()
            total += losses.detach().double() * (stop - start)
            steps += 1
    return (total / num_examples).tolist(), steps


def warm_up() -> None:
    """Have torch load what it needs for this, which takes seconds, ahead of the first site."""
    model = torch.nn.Linear(1, 1)
    stack = Stack(model, 2, lambda model, batch: (model(batch[0]) - batch[1]).square().mean())
    torch.autograd.grad(
        stack.losses(torch.ones(2, 1, 1), torch.ones(2, 1, 1)).sum(), list(stack.weights.values())
    )
