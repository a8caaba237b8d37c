"""Quantiles of one column, by refining an interval in each round.

The quantile at level q of n values is the smallest v of them with at least ceil(q * n) values <= v
(the inverse of the empirical distribution, Hyndman and Fan, The American Statistician 1996,
definition 1). In each round the interval of each level is cut into ``bins``, the sites count, and
the bin that holds that rank is the interval of the next round: bisection with more than two parts.
After all rounds it is (high - low) / bins**rounds wide, and the value told is its middle, so half
of that bounds the error. Values beyond ``low`` and ``high`` count as those.

Where sites drop out between rounds, the rank is that of those that remain, and may lie outside the
interval; ``at_or_below`` tells, for the last round, how many values lie on either side.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from fractions import Fraction
from typing import Annotated, Final

import msgspec
import numpy as np
from msgspec import Meta

from strategies import Parameters
from workflows.analyses.columns import Column, SiteColumns
from workflows.analyses.query import (
    Answer,
    Bins,
    Finding,
    Query,
    Sums,
    bounds_misfit,
    counted_sites,
)
from workflows.selection import Misfit

FINEST: Final = 2.0**48
"""Most parts of the range: float64 has room for no more intervals than some 2**53."""


class Level(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One quantile.

    Attributes:
        level: Of the examples at or below it, as a share.
        value: Middle of the interval that holds it.
        low: The quantile lies above this, or is the range's own lower end.
        high: It lies at or below this.
        at_or_below: Values at or below ``low`` (none, if that is the range's own), and at or below
            ``high``.
    """

    level: float
    value: float
    low: float
    high: float
    at_or_below: tuple[int, int]


class QuantileFinding(Finding, frozen=True, tag="quantile"):
    """All levels, as they were asked."""

    levels: tuple[Level, ...]

    @property
    def headers(self) -> tuple[str, ...]:
        return ("LEVEL", "VALUE", "WITHIN")

    def rows(self) -> Iterator[tuple[str, ...]]:
        for one in self.levels:
            yield f"{one.level:g}", f"{one.value:.8g}", f"{(one.high - one.low) / 2:.2g}"


class Quantile(Query, frozen=True, tag="quantile"):
    """Values below which given shares of the examples lie.

    Attributes:
        column: Of which.
        levels: Shares, each above 0 and below 1.
        low: Where values are taken to begin.
        high: Where they are taken to end.
        bins: Into which an interval is cut in each round.
        rounds: How often.
    """

    column: Column
    levels: Annotated[tuple[float, ...], Meta(min_length=1, max_length=100)]
    low: float
    high: float
    bins: Bins = 64
    rounds: Annotated[int, Meta(ge=1, le=48)] = 3

    @property
    def num_rounds(self) -> int:
        return self.rounds

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        return {"counts": (len(self.levels), self.bins + 2)}

    def named(self) -> Iterator[tuple[str, Column]]:
        yield "column", self.column

    def misfit(self, num_examples: int) -> Misfit | None:
        for index, level in enumerate(self.levels):
            if not 0 < level < 1:
                problem = f"{level:g} is no level"
                return Misfit((f"levels[{index}]",), problem, "give one above 0 and below 1")
        if self.bins**self.rounds > FINEST:
            problem = f"{self.bins} bins in {self.rounds} rounds are finer than numbers are"
            mend = f"ask for at most {int(math.log(FINEST, self.bins))} rounds"
            return Misfit(("rounds", "bins"), problem, mend)
        return bounds_misfit(self.low, self.high)

    def answer(self, site: SiteColumns, table: Parameters, round: int) -> Answer:
        values = np.sort(np.clip(site.numbers(self.column), self.low, self.high))
        counts = np.empty(self.shapes["counts"])
        for row, (low, high) in zip(counts, self._intervals(table, round), strict=True):
            counts_to = np.searchsorted(values, self._edges(low, high), side="right")
            if low == self.low:
                counts_to[0] = 0  # the first interval holds its lower end
            row[:] = np.diff(counts_to, prepend=0, append=len(values))
        return {"counts": counts}

    def finding(self, table: Parameters) -> QuantileFinding:
        last = table["counts"][-1]
        found = self._intervals(table, self.rounds)
        before = self._intervals(table, self.rounds - 1)
        return QuantileFinding(
            sites=counted_sites(table),
            examples=int(last[0].sum()),
            levels=tuple(
                Level(
                    level=level,
                    value=low + (high - low) / 2,
                    low=low,
                    high=high,
                    at_or_below=self._at_or_below(counts, high, self._edges(*interval)),
                )
                for level, (low, high), counts, interval in zip(
                    self.levels, found, last, before, strict=True
                )
            ),
        )

    def _intervals(self, table: Parameters, round: int) -> list[tuple[float, float]]:
        """Where each level's quantile is known to lie before a round."""
        intervals = [(self.low, self.high)] * len(self.levels)
        for counts in table["counts"][:round]:
            intervals = [
                self._narrowed(level, interval, row)
                for level, interval, row in zip(self.levels, intervals, counts, strict=True)
            ]
        return intervals

    def _narrowed(
        self, level: float, interval: tuple[float, float], counts: Sums
    ) -> tuple[float, float]:
        edges = self._edges(*interval)
        rank = math.ceil(Fraction(str(level)) * int(counts.sum()))  # of the level as it is written
        k = int(np.searchsorted(np.cumsum(counts)[1:-1], rank, side="left"))
        k = min(k, self.bins - 1)
        return float(edges[k]), float(edges[k + 1])

    def _edges(self, low: float, high: float) -> Sums:
        return np.linspace(low, high, self.bins + 1)

    @staticmethod
    def _at_or_below(counts: Sums, high: float, edges: Sums) -> tuple[int, int]:
        upper = int(np.searchsorted(edges, high, side="left"))
        running = np.cumsum(counts)
        return int(running[upper - 1]), int(running[upper])
