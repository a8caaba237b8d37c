"""FLTrust: trust in a site is how far its update points where the server's own does.

Source: Cao, Fang, Liu, Gong, "FLTrust: Byzantine-robust Federated Learning via Trust
Bootstrapping", NDSS 2021, Algorithm 2, arXiv:2012.13995. The server trains from the global model on
a small clean root data set as a site does, which gives g_0; then

    TS_i = ReLU(cos(g_i, g_0)),   g = 1 / sum_i TS_i * sum_i TS_i * |g_0| / |g_i| * g_i

There the server and all clients take equally many local steps; here each takes as many as its
epochs need, so the root data's size has a say in |g_0|, the length of every step. Where nobody is
trusted, for no update points where g_0 does or g_0 is zero, the quotient is 0/0, of which the paper
says nothing; here the model stays what it was. An update of zeros has no direction and no trust.

It needs no majority of honest sites. It needs root data like the sites': where these differ much,
honest sites point elsewhere too, and what they alone know is not learnt.
"""

from __future__ import annotations

import math
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from strategies.kept import Decided, KeptFold, Rows
from strategies.ring import Ring
from strategies.sensitivity import Sensitivity, of_mean
from strategies.strategy import ROOT, Partial, require_expected
from strategies.tiles import Tile, each
from strategies.update import Array, Incompatible, ModelUpdate, StrategyError


class RootMissing(StrategyError):
    """The server's own update did not come, so there is nothing to compare the sites' with."""


class FLTrust(KeptFold, frozen=True, tag="fltrust"):
    """Move the model by the mean of the updates by trust, each as long as the server's own.

    The server's own data is the job's central part.
    """

    wants_root: ClassVar[bool] = True

    @property
    def min_rows(self) -> int:
        return 1

    def accumulate(self, partial: Partial, update: ModelUpdate, ring: Ring) -> Partial:
        """Keep one update; that of ``ROOT`` is the server's own, and none of the cohort's."""
        if update.site != ROOT:
            return super().accumulate(partial, update, ring)
        require_expected(partial, update)
        if ROOT in partial.kept:
            raise Incompatible(ROOT, f"a second update came in round {partial.round}")
        self.keep(partial, update, ring)
        return partial

    def merge(self, left: Partial, right: Partial) -> Partial:
        if ROOT in left.kept and ROOT in right.kept:
            raise ValueError("both folds hold the server's own update")
        return super().merge(left, right)

    def sensitivity(self, clip_norm: float, max_weight: int) -> Sensitivity:
        """That of a mean, for each update is as long as the server's own, or nothing at all.

        It is reached as sites come close to a right angle to the server's own update, one of them
        less so, on the other side, and by far the most trusted.
        """
        return of_mean(clip_norm)

    def decide(self, partial: Partial, ring: Ring) -> Decided:
        """What each update is multiplied by.

        Raises:
            RootMissing: The server's own update did not come.
        """
        if ROOT not in partial.kept:
            raise RootMissing(f"the server's own update did not come in round {partial.round}")

        def of_tile(tile: Tile) -> NDArray[np.float64]:
            root = partial.kept[ROOT].read(tile.layer, tile.start, tile.stop).astype(np.float64)
            rows = [root, *(row.astype(np.float64) for row in self.rows(partial, tile))]
            found = [(np.add.reduce(x * root), np.add.reduce(np.square(x))) for x in rows]
            return np.array(found).T

        parts = each(partial.shapes, self.tile_length(partial), of_tile)
        products, squares = sum(parts, np.zeros((2, 1 + self.num_rows(partial))))
        return factors(products[1:], squares[1:], float(squares[0]))

    def combine(self, rows: Rows, decided: Decided) -> Array:
        total = np.zeros(rows.shape[1])
        for row, factor in zip(rows, decided, strict=True):
            if factor:
                total += factor * row.astype(np.float64)
        return total


def factors(
    products: NDArray[np.float64], squares: NDArray[np.float64], root_square: float
) -> Decided:
    """What each update is multiplied by, so that their sum is the global update.

    Args:
        products: <g_i, g_0>.
        squares: |g_i|**2.
        root_square: |g_0|**2.
    """
    lengths = np.sqrt(squares)
    has_direction = (squares > 0) & (root_square > 0)
    cosines = np.zeros(len(products))
    np.divide(products, lengths * math.sqrt(root_square), out=cosines, where=has_direction)
    trust = np.maximum(0, cosines)
    total = sum(trust.tolist())
    if not total:
        return np.zeros(len(products))
    rescaled = np.zeros(len(products))
    np.divide(math.sqrt(root_square), lengths, out=rescaled, where=has_direction)
    return np.asarray(trust / total * rescaled)
