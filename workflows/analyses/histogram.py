"""A histogram of one column, exact.

Bins are half-open, [edge, next edge), but for the last, which holds its upper edge too, as numpy's
``histogram`` has them; what lies outside is counted on either side.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Annotated

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


class HistogramFinding(Finding, frozen=True, tag="histogram"):
    """How many values lie in each bin.

    Attributes:
        edges: One more than bins.
        counts: Of the bins.
        below: Values below the first edge.
        above: Values above the last edge.
    """

    edges: tuple[float, ...]
    counts: tuple[int, ...]
    below: int
    above: int

    @property
    def headers(self) -> tuple[str, ...]:
        return ("FROM", "TO", "COUNT")

    def rows(self) -> Iterator[tuple[str, ...]]:
        yield "", f"{self.edges[0]:g}", str(self.below)
        for (low, high), count in zip(pairwise(self.edges), self.counts, strict=True):
            yield f"{low:g}", f"{high:g}", str(count)
        yield f"{self.edges[-1]:g}", "", str(self.above)


class Histogram(Query, frozen=True, tag="histogram"):
    """How the values of a column are distributed.

    Attributes:
        column: Which.
        edges: Of the bins, rising; or give ``low``, ``high`` and ``bins`` instead.
        low: First edge of bins of equal width.
        high: Last edge of bins of equal width.
        bins: How many of equal width.
    """

    column: Column
    edges: Annotated[tuple[float, ...], Meta(max_length=4097)] = ()
    low: float | None = None
    high: float | None = None
    bins: Bins | None = None

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        return {"counts": (len(self.bounds) + 1,)}

    @property
    def bounds(self) -> Sums:
        """All edges."""
        if self.edges or self.low is None or self.high is None or self.bins is None:
            return np.array(self.edges, np.float64)
        return np.linspace(self.low, self.high, self.bins + 1)

    def named(self) -> Iterator[tuple[str, Column]]:
        yield "column", self.column

    def misfit(self, num_examples: int) -> Misfit | None:
        even = {"low": self.low, "high": self.high, "bins": self.bins}
        missing = tuple(name for name, value in even.items() if value is None)
        if self.edges and len(missing) < len(even):
            given = tuple(name for name in even if name not in missing)
            return Misfit(("edges", *given), "bins are given twice", "leave one of the two out")
        if not self.edges and missing:
            return Misfit(missing, "bins are not given", "give low, high and bins, or edges")
        if self.low is not None and self.high is not None:
            wrong = bounds_misfit(self.low, self.high)
            if wrong:
                return wrong
        if len(self.bounds) < 2 or not (np.diff(self.bounds) > 0).all():
            fields = ("edges",) if self.edges else ("low", "high", "bins")
            return Misfit(fields, "edges do not rise", "give at least two, each above the last")
        return None

    def answer(self, site: SiteColumns, table: Parameters, round: int) -> Answer:
        values, edges = site.numbers(self.column), self.bounds
        place = np.searchsorted(edges, values, side="right")
        place[values == edges[-1]] = len(edges) - 1
        return {"counts": np.bincount(place, minlength=len(edges) + 1).astype(np.float64)}

    def finding(self, table: Parameters) -> HistogramFinding:
        below, *counts, above = (int(count) for count in table["counts"][0])
        return HistogramFinding(
            sites=counted_sites(table),
            examples=below + sum(counts) + above,
            edges=tuple(self.bounds.tolist()),
            counts=tuple(counts),
            below=below,
            above=above,
        )
