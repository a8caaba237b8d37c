"""FedNova: the mean of normalised updates, so that sites with more local steps do not pull harder.

Source: Wang et al., "Tackling the Objective Inconsistency Problem in Heterogeneous Federated
Optimization", NeurIPS 2020, equations 3 and 4, arXiv:2007.07481:

    x <- x - tau_eff * sum_i p_i * eta * d_i,   eta * d_i = (x - x_i) / ||a_i||_1

with p_i = n_i / n over the cohort and tau_eff = sum_i p_i * ||a_i||_1, as in the authors' own code.
a_i are the weights with which the local optimiser accumulates its gradients; only SGD and SGD with
momentum have such weights in the paper, so other local optimisers are refused. The paper sums over
all clients, here it is over the cohort that was drawn.
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar, Final, Literal

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

MOST: Final = 2.0**16
"""Largest norm of coefficients: as many steps a round, or a tenth of that at a momentum of 0.9."""


def normaliser(steps: int, momentum: float = 0.0) -> float:
    """||a_i||_1 of ``steps`` steps of SGD.

    Source: section 3 there: with momentum rho, a_i has the entries (1 - rho**k) / (1 - rho) for
    k = tau, ..., 1; without, ones.
    """
    tau, rho = steps, momentum
    return (tau - rho * (1 - rho**tau) / (1 - rho)) / (1 - rho)


class FedNova(FedAvg, frozen=True):
    """Move the model by the mean normalised delta, times the mean normaliser."""

    scalars: ClassVar[tuple[Scalar, ...]] = ("normaliser",)
    sums: ClassVar[tuple[str, ...]] = ("normaliser",)
    local_optimizers: ClassVar[Literal["any", "sgd", "plain-sgd"]] = "sgd"

    def client_half(self) -> ClientHalf:
        return ClientHalf(scalars=self.scalars, wants_gradients_only=True)

    def contribution(self, update: ModelUpdate, ring: Ring) -> ModelUpdate:
        """The delta divided by the normaliser, and the normaliser, weighted by examples.

        Dividing before the ring, and not by weights n_i / ||a_i||_1 made integer, leaves every bit
        of the ring to the cohort: as a normaliser is at least 1, no entry grows.
        """
        a = scalar_of(update, "normaliser")
        if a < 1:
            raise OutOfRing(update.site, f"normaliser {a:g} is below 1, which is one step")
        extra = as_layer("normaliser", update.site, a, MOST, ring)
        delta = tree_map(lambda x: x / a, in_float64(update, ring))
        return replace(update, delta=delta | extra)

    def finish(self, partial: Partial, ring: Ring) -> Parameters:
        means = dict(super().finish(partial, ring))
        tau_eff = means.pop(f"{SCALARS}/normaliser") / scale_of(MOST, ring)
        return {name: x * tau_eff for name, x in means.items()}

    def sensitivity(self, clip_norm: float, max_weight: int) -> Sensitivity:
        """Bounds by part; a normaliser is at least 1, and at most ``MOST``."""
        return of_sum(max_weight, delta=max_weight * clip_norm, normaliser=max_weight * MOST)
