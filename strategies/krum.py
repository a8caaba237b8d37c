"""Krum and Multi-Krum: updates that have close neighbours.

Source: Blanchard et al., "Machine Learning with Adversaries: Byzantine Tolerant Gradient Descent",
NeurIPS 2017, section 4 (the score s(i) over the n - f - 2 closest, and 2f + 2 < n) and section 6
(Multi-Krum), arXiv:1703.02757. Gradients there, local updates here. Of equal scores the site first
by name is taken. Multi-Krum's m defaults to n - f - 2, the most for which El Mhamdi et al. (ICML
2018, arXiv:1802.07927) keep the guarantee. Buckets before Krum are of Karimireddy et al.
(``strategies.buckets``): f wrong sites spoil at most f buckets, so f stays what it was.
"""

from __future__ import annotations

from typing import Annotated

import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from strategies.buckets import BucketedFold
from strategies.client_momentum import MomentumFold
from strategies.kept import Decided, Rows, weighted_mean
from strategies.ring import Ring
from strategies.sensitivity import Sensitivity, of_mean
from strategies.strategy import Partial
from strategies.update import Array

Malicious = Annotated[int, Meta(ge=1, le=100_000)]


class Krum(BucketedFold, frozen=True, tag="krum"):
    """Move the model by the one update whose n - f - 2 nearest are closest to it.

    Attributes:
        num_malicious: Most sites of a round that may be wrong (f); a round needs 2f + 3 updates.
    """

    num_malicious: Malicious = 1

    @property
    def min_rows(self) -> int:
        return 2 * self.num_malicious + 3

    def sensitivity(self, clip_norm: float, max_weight: int) -> Sensitivity:
        """That of a mean: one update, or the mean of one bucket."""
        return of_mean(clip_norm)

    def decide(self, partial: Partial, ring: Ring) -> Decided:
        return best(scores(self.distances(partial), self.num_malicious), 1)

    def combine(self, rows: Rows, decided: Decided) -> Array:
        return weighted_mean(rows, decided)


class MultiKrum(MomentumFold, frozen=True, tag="multi-krum"):
    """Move the model by the mean of the m updates with the best scores.

    Attributes:
        num_malicious: Most sites of a round that may be wrong (f); a round needs 2f + 3 updates.
        num_selected: m; None for n - f - 2. A round needs f + 2 updates more than that.
    """

    num_malicious: Malicious = 1
    num_selected: Annotated[int, Meta(ge=1, le=100_000)] | None = None

    @property
    def min_rows(self) -> int:
        return max(2 * self.num_malicious + 3, (self.num_selected or 0) + self.num_malicious + 2)

    def sensitivity(self, clip_norm: float, max_weight: int) -> Sensitivity:
        """That of a mean: of m updates, all of which may be others when a site is gone."""
        return of_mean(clip_norm)

    def decide(self, partial: Partial, ring: Ring) -> Decided:
        number = self.num_selected or self.num_rows(partial) - self.num_malicious - 2
        return best(scores(self.distances(partial), self.num_malicious), number)

    def combine(self, rows: Rows, decided: Decided) -> Array:
        return weighted_mean(rows, decided)


def scores(distances: NDArray[np.float64], num_malicious: int) -> NDArray[np.float64]:
    """Krum's score of each row: squared distances to its n - f - 2 closest others, summed."""
    n = len(distances)
    others = np.sort(distances[~np.eye(n, dtype=bool)].reshape(n, n - 1), axis=1)
    return np.array([sum(row[: max(1, n - num_malicious - 2)].tolist()) for row in others])


def best(scores: NDArray[np.float64], number: int) -> Decided:
    """Weight 1 for the lowest scores, the first of equals first, and 0 for the others."""
    weights = np.zeros(len(scores))
    weights[np.argsort(scores, kind="stable")[:number]] = 1
    return weights
