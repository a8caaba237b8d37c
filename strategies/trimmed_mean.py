"""The coordinate-wise trimmed mean.

Source: Yin et al., "Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates",
ICML 2018, Definition 2 and Algorithm 1 (option II), arXiv:1803.01498. The paper trims the share
beta of the values at each end; here it is their number f = beta * n, since that is what a job knows
of its sites, and it stays when sites drop out. The paper averages gradients, here local updates.
"""

from __future__ import annotations

from typing import Annotated

import numpy as np
from msgspec import Meta

from strategies.client_momentum import MomentumFold
from strategies.kept import Decided, Rows, middle_of_columns
from strategies.sensitivity import Sensitivity, of_result
from strategies.update import Array


class TrimmedMean(MomentumFold, frozen=True, tag="trimmed-mean"):
    """Move the model by the mean of each coordinate without its f lowest and f highest values.

    Attributes:
        num_malicious: Most sites of a round that may be wrong (f); a round needs 2f + 1 updates.
    """

    num_malicious: Annotated[int, Meta(ge=1, le=100_000)] = 1

    @property
    def min_rows(self) -> int:
        return 2 * self.num_malicious + 1

    def sensitivity(self, clip_norm: float, max_weight: int) -> Sensitivity:
        """By what distances of the middle values cost in length; no dimension is in it.

        Take one of n sites away, and the mean y of a coordinate's N = n - 2f middle values becomes
        that of all but one of them, x: it moves by (y - x) / (N - 1). Let x be the lowest of them
        (or, turned round, the highest) and g = (y - x) * N / (N - 1) how far it is from the mean of
        the others. Then f + 1 values are at most x, and n - f - 1 are x + g or more on average, so
        their squares sum to (f + 1) * (n - f - 1) / n * g**2 at least. As the squares of all
        entries of all updates sum to n * clip_norm**2 at most, the squares of all moves, each
        (g / N)**2, sum to

            n**2 / (N**2 * (f + 1) * (n - f - 1)) * clip_norm**2

        at most, which falls with n and is clip_norm**2 for n = 2f + 2, the smallest cohort that is
        one more than the fold needs.
        """
        return of_result(clip_norm)

    def combine(self, rows: Rows, decided: Decided) -> Array:
        f = self.num_malicious
        middle = middle_of_columns(rows, f, len(rows) - f)
        total = np.zeros(rows.shape[1], np.int64)
        widened = np.empty_like(total)
        for row in middle:
            np.copyto(widened, row)  # twice as fast as to let the addition widen it
            np.add(total, widened, out=total)
        return np.true_divide(total, len(middle))
