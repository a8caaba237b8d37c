"""The coordinate-wise median, which a minority of wrong updates cannot move far.

Source: Yin et al., "Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates",
ICML 2018, Definition 1 and Algorithm 1 (option I), arXiv:1803.01498. Every site counts once,
whatever it says of its number of examples. The paper takes the median of gradients, here it is of
local updates; buckets before it are of Karimireddy et al. (``strategies.buckets``).
"""

from __future__ import annotations

import math

import numpy as np

from strategies.buckets import BucketedFold
from strategies.kept import Decided, Rows, middle_of_columns
from strategies.sensitivity import Sensitivity, of_result
from strategies.update import Array


class CoordinateMedian(BucketedFold, frozen=True, tag="coordinate-median"):
    """Move the model by the median of the client deltas, coordinate by coordinate."""

    def sensitivity(self, clip_norm: float, max_weight: int) -> Sensitivity:
        """By what distances of the middle values cost in length; no dimension is in it.

        Take one of n sites away, and the median of a coordinate moves by half a gap g between two
        values that are neighbours in the middle. With p values below the gap and q above, p + q =
        n, their squares sum to p * q / n * g**2 at least. As the squares of all entries of all
        updates sum to n * clip_norm**2 at most, the squares of all moves sum to

            n**2 / (4 * p * q) * clip_norm**2

        at most: clip_norm**2 where n is even, n**2 / (n**2 - 1) of it where n is odd. That is most
        for n = 5, the smallest odd cohort that is one more than a median needs.

        Under buckets one site changes them all. Half the rows at least are as far from 0 as the
        median is, on its side, so its square is at most 2/n of the column's squares, and its length
        at most sqrt(2) * clip_norm; it moves by twice that at most.
        """
        if self.bucket_size > 1:
            return of_result(2 * math.sqrt(2) * clip_norm)
        return of_result(5 / math.sqrt(24) * clip_norm)

    def combine(self, rows: Rows, decided: Decided) -> Array:
        """Median of each column; an even number of values gives the mean of the middle two."""
        middle = middle_of_columns(rows, (len(rows) - 1) // 2, len(rows) // 2 + 1)
        total: Array = middle[0].astype(np.float64) + middle[-1]
        return total / 2
