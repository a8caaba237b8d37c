"""The coordinate-wise median, which a minority of wrong updates cannot move far.

Source: Yin et al., "Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates",
ICML 2018, Definition 1 and Algorithm 1 (option I), arXiv:1803.01498. Every site counts once,
whatever it says of its number of examples. The paper takes the median of gradients, here it is of
local updates; buckets before it are of Karimireddy et al. (``strategies.buckets``).
"""

from __future__ import annotations

import numpy as np

from strategies.buckets import BucketedFold
from strategies.kept import Decided, Rows, middle_of_columns
from strategies.update import Array


class CoordinateMedian(BucketedFold, frozen=True, tag="coordinate-median"):
    """Move the model by the median of the client deltas, coordinate by coordinate."""

    def combine(self, rows: Rows, decided: Decided) -> Array:
        """Median of each column; an even number of values gives the mean of the middle two."""
        middle = middle_of_columns(rows, (len(rows) - 1) // 2, len(rows) // 2 + 1)
        total: Array = middle[0].astype(np.float64) + middle[-1]
        return total / 2
