"""RFA: the geometric median of the updates, by the smoothed Weiszfeld algorithm.

Source: Pillutla, Kakade, Harchaoui, "Robust Aggregation for Federated Learning", IEEE TSP 2022,
Algorithm 2 and equation 8, arXiv:1912.13445. The paper weighs sites by their examples, here every
site counts once, for the number is only a claim. Every iterate is a mean of the updates, so its
distance to each follows from the distances between updates, which are taken in one pass; the paper
asks the sites for it once an iteration. The start is the mean. Buckets are of Karimireddy et al.
(``strategies.buckets``).
"""

from __future__ import annotations

from typing import Annotated

import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from strategies.buckets import BucketedFold
from strategies.kept import Decided, Rows, weighted_mean
from strategies.ring import Ring
from strategies.sensitivity import Sensitivity, of_mean
from strategies.strategy import Partial
from strategies.update import Array


class GeometricMedian(BucketedFold, frozen=True, tag="geometric-median"):
    """Move the model by the point with the least sum of distances to the client deltas.

    Attributes:
        iterations: Of the algorithm (its communication budget in the paper).
        nu: Smoothing: distances below it count as this much, in units of the model's parameters.
    """

    iterations: Annotated[int, Meta(ge=1, le=10_000)] = 3
    nu: Annotated[float, Meta(gt=0)] = 1e-6

    def sensitivity(self, clip_norm: float, max_weight: int) -> Sensitivity:
        """That of a mean, after any number of iterations: no shares but of sum 1."""
        return of_mean(clip_norm)

    def decide(self, partial: Partial, ring: Ring) -> Decided:
        return self.weights(self.distances(partial) / ring.scale**2)

    def weights(self, distances: NDArray[np.float64]) -> Decided:
        """Share of each update in the median, from their squared distances."""
        shares = np.full(len(distances), 1 / len(distances))
        for _ in range(self.iterations):
            beta = 1 / np.maximum(self.nu, np.sqrt(_squared(shares, distances)))
            shares = beta / sum(beta.tolist())
        return shares

    def combine(self, rows: Rows, decided: Decided) -> Array:
        return weighted_mean(rows, decided)


def _squared(shares: Decided, distances: NDArray[np.float64]) -> NDArray[np.float64]:
    """Squared distance of each update to the mean by ``shares``, which sum to 1.

    |x_i - sum_j a_j x_j|^2 = sum_j a_j d_ij - 1/2 sum_jk a_j a_k d_jk; in an order of our own, so
    that no library for matrices decides the last bit.
    """
    to_each = np.array([sum((row * shares).tolist()) for row in distances])
    spread = sum((to_each * shares).tolist())
    return np.asarray(np.maximum(0, to_each - spread / 2))
