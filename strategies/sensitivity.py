"""How far one site can move what a strategy folds: what noise of central privacy is scaled to.

Neighbouring cohorts differ by one site that is there or not, and both are large enough for the
fold. Bounds are of real numbers: rounding to the ring adds at most half its resolution to each
entry of each update.

Source of the notion: Dwork and Roth, "The Algorithmic Foundations of Differential Privacy", 2014,
definition 3.8 (L2 sensitivity); per site as in McMahan et al., ICLR 2018, arXiv:1710.06963.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

WEIGHT: Final = "weight"


@dataclass(frozen=True, slots=True)
class Sensitivity:
    """Most by which one site, there or not, changes what is folded, in L2.

    Attributes:
        of: What is bounded, and so where noise would have to be added: the weighted ``sum`` before
            anything is divided by anything; or the ``result``, the delta that ``finish`` gives, for
            folds that are no sums.
        parts: Bound by part, each in units of its own. Of a sum, ``delta``, each of the strategy's
            ``vectors`` and ``sums``, and ``weight``, by which they are divided. Of a result,
            ``delta`` alone.
    """

    of: Literal["sum", "result"]
    parts: Mapping[str, float]


def of_sum(weight: float, **parts: float) -> Sensitivity:
    """That of sums, given the largest weight of one site."""
    return Sensitivity("sum", {**parts, WEIGHT: weight})


def of_result(delta: float) -> Sensitivity:
    """That of a result."""
    return Sensitivity("result", {"delta": delta})


def of_mean(clip_norm: float) -> Sensitivity:
    """That of a mean of updates, by whatever weights of sum 1 (or of sum 0: nothing at all).

    It is no longer than the longest update, before and after, so it moves by twice that at most.
    (For Krum that much is reached: of two clusters, one site more decides which is taken.)
    """
    return of_result(2 * clip_norm)
