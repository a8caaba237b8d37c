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

    def combine(self, rows: Rows, decided: Decided) -> Array:
        f = self.num_malicious
        middle = middle_of_columns(rows, f, len(rows) - f)
        total = np.zeros(rows.shape[1], np.int64)
        widened = np.empty_like(total)
        for row in middle:
            np.copyto(widened, row)  # twice as fast as to let the addition widen it
            np.add(total, widened, out=total)
        return np.true_divide(total, len(middle))
