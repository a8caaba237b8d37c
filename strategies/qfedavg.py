"""q-FedAvg: the worse the global model serves a site, the more the site counts.

Source: Li et al., "Fair Resource Allocation in Federated Learning", ICLR 2020, Algorithm 2,
arXiv:1905.10497:

    Delta_k = F_k**q * L * (w - w_k),   h_k = q * F_k**(q-1) * ||L * (w - w_k)||**2 + L * F_k**q,
    w <- w - sum_k Delta_k / sum_k h_k

F_k is the loss of the global model on the site's training examples, before it trains. There
clients are drawn in proportion to their examples and count alike; here they are drawn uniformly and
each sum is weighted by examples, so that q = 0 is FedAvg. Both sums are divided by L, and the
losses by ``loss_scale``: neither changes the quotient, and the ring holds them better. As in the
authors' code, a loss is at least 1e-10.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Annotated, ClassVar, Final

import numpy as np
from msgspec import Meta

from strategies.fedavg import FedAvg
from strategies.ring import Ring
from strategies.sensitivity import Sensitivity, of_sum
from strategies.strategy import (
    SCALARS,
    ClientHalf,
    Partial,
    Scalar,
    as_layer,
    in_float64,
    scalar_of,
    scale_of,
)
from strategies.update import ModelUpdate, OutOfRing, Parameters, tree_map

LEAST_LOSS: Final = 1e-10
MOST: Final = 2.0**16
"""Largest h_k / L, with losses in units of ``loss_scale``. What the ring rounds of it changes the
length of the step alone."""


class QFedAvg(FedAvg, frozen=True):
    """Minimise the mean of F_k**(q+1) / (q+1) over the sites.

    Attributes:
        q: Weight of fairness; 0 is FedAvg.
        lipschitz: Estimate L of the gradients' Lipschitz constant: 1 over the local learning rate
            that serves FedAvg best.
        loss_scale: Loss at which a site counts as in FedAvg. It changes the result by no more than
            rounding; take what losses are near the end if q is well above 1.
        max_loss: Loss beyond which a site counts no more than at it.
    """

    q: Annotated[float, Meta(ge=0, le=20)] = 1.0
    lipschitz: Annotated[float, Meta(gt=0, le=1e6)] = 10.0
    loss_scale: Annotated[float, Meta(ge=1e-6, le=1e6)] = 1.0
    max_loss: Annotated[float, Meta(ge=1e-6, le=1e6)] = 100.0

    scalars: ClassVar[tuple[Scalar, ...]] = ("loss_before",)
    sums: ClassVar[tuple[str, ...]] = ("h",)

    def client_half(self) -> ClientHalf:
        return ClientHalf(scalars=self.scalars)

    def contribution(self, update: ModelUpdate, ring: Ring) -> ModelUpdate:
        """-Delta_k / L and h_k / L, weighted by examples."""
        loss = scalar_of(update, "loss_before")
        if loss < 0:
            raise OutOfRing(update.site, f"loss_before is {loss:g}, which no power can weigh")
        weight = self.weight(loss)
        delta = in_float64(update, ring)
        square = math.fsum(float(np.square(x).sum()) for x in delta.values())
        extra = as_layer("h", update.site, self.h(loss, square), MOST, ring)
        return replace(update, delta=tree_map(lambda x: x * weight, delta) | extra)

    def weight(self, loss: float) -> float:
        """(F_k / loss_scale)**q."""
        return math.pow(self._bounded(loss) / self.loss_scale, self.q)

    def h(self, loss: float, square: float) -> float:
        """h_k / L of a site whose delta has the square norm ``square``."""
        bent = self.q * self.weight(loss) / self._bounded(loss) * self.lipschitz * square
        return bent + self.weight(loss)

    def finish(self, partial: Partial, ring: Ring) -> Parameters:
        means = dict(super().finish(partial, ring))
        h = means.pop(f"{SCALARS}/h") / scale_of(MOST, ring)
        if not h:  # every loss is too small for the ring: there is nothing to be learnt
            return tree_map(np.zeros_like, means)
        return {name: x / h for name, x in means.items()}

    def sensitivity(self, clip_norm: float, max_weight: int) -> Sensitivity:
        """Bounds by part; h_k / L is largest at one end of the losses, and at most ``MOST``."""
        ends = [self.h(loss, clip_norm**2) for loss in (LEAST_LOSS, self.max_loss)]
        return of_sum(
            max_weight,
            delta=max_weight * self.weight(self.max_loss) * clip_norm,
            h=max_weight * min(max(ends), MOST),
        )

    def _bounded(self, loss: float) -> float:
        return min(max(loss, LEAST_LOSS), self.max_loss)
