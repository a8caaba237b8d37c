"""Bulyan: what many runs of Krum choose, trimmed around its median coordinate by coordinate.

Source: El Mhamdi, Guerraoui, Rouault, "The Hidden Vulnerability of Distributed Learning in
Byzantium", ICML 2018, section 4 (theta = n - 2f choices of Krum, each taken out before the next;
beta = theta - 2f values around the median; n >= 4f + 3), arXiv:1802.07927. Gradients there, local
updates here. Where r updates are left Krum looks at the closest r - f - 2, and at one at least.
Of values equally far from the median the lower is taken.
"""

from __future__ import annotations

import math
from typing import Annotated

import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from strategies.client_momentum import MomentumFold
from strategies.kept import Decided, Rows, sort_columns
from strategies.krum import scores
from strategies.ring import Ring
from strategies.sensitivity import Sensitivity, of_result
from strategies.strategy import Partial
from strategies.update import Array


class Bulyan(MomentumFold, frozen=True, tag="bulyan"):
    """Move the model by a trimmed mean of the updates that Krum would choose.

    Attributes:
        num_malicious: Most sites of a round that may be wrong (f); a round needs 4f + 3 updates.
    """

    num_malicious: Annotated[int, Meta(ge=1, le=100_000)] = 1

    @property
    def min_rows(self) -> int:
        return 4 * self.num_malicious + 3

    def sensitivity(self, clip_norm: float, max_weight: int) -> Sensitivity:
        """Twice the greatest length of a result, for one site may change all that is chosen.

        Let a coordinate of the theta chosen have the values x_i, the median m and the result y, the
        mean of the beta closest to m. Squares of means are at most means of squares, so y**2 is at
        most 1/beta of the sum of x_i**2; over all coordinates |y|**2 <= theta / beta *
        clip_norm**2, where theta / beta is most for n = 4f + 3. For large f another bound is lower:
        the values left out are as far from m as any that is not, so (y - m)**2 is at most the mean
        of (x_i - m)**2, which is at most twice the variance, for a median is within one deviation
        of the mean. That and |m| <= sqrt(2) * clip_norm (``CoordinateMedian``) give |y| <= 2 *
        sqrt(2) * clip_norm.
        """
        longest = min(math.sqrt((2 * self.num_malicious + 3) / 3), 2 * math.sqrt(2))
        return of_result(2 * longest * clip_norm)

    def decide(self, partial: Partial, ring: Ring) -> Decided:
        return self.chosen(self.distances(partial))

    def chosen(self, distances: NDArray[np.float64]) -> Decided:
        """Weight 1 for the theta updates that Krum chooses one after the other."""
        left, weights = list(range(len(distances))), np.zeros(len(distances))
        for _ in range(len(distances) - 2 * self.num_malicious):
            first = int(np.argmin(scores(distances[np.ix_(left, left)], self.num_malicious)))
            weights[left.pop(first)] = 1
        return weights

    def combine(self, rows: Rows, decided: Decided) -> Array:
        values = [row.astype(np.float64) for row in sort_columns(rows[decided > 0])]
        theta = len(values)
        beta = theta - 2 * self.num_malicious
        median = (values[(theta - 1) // 2] + values[theta // 2]) / 2
        # The values closest to the median are a run of the sorted ones. It begins where the lowest
        # of it is no farther from the median than the value that would come in its place.
        total: Array = np.add.reduce(values[:beta])
        chosen = total.copy()
        for start in range(theta - beta):
            lowest, next_ = values[start], values[start + beta]
            total += next_ - lowest
            np.copyto(chosen, total, where=median - lowest > next_ - median)
        return chosen / beta
