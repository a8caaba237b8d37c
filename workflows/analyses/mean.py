"""Means and variances of columns, from sums of powers.

Values are clipped to a range that the job declares, for each column its own, and brought to
[-1, 1]: u = (clip(x) - middle) / half. Sites answer with their sums of 1, u and u**2, so that

    mean = middle + half * S_1 / n,   variance = half**2 * (S_2 / n - (S_1 / n)**2),

which loses little to cancellation. A site's sum is rounded to the ring once: with K sites and n
examples the mean is within half * K / n * 2**-(fraction_bits + 1) of that of the clipped values,
beside float64's own rounding. How many values were clipped is counted too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Final

import msgspec
import numpy as np
from msgspec import Meta

from strategies import Parameters
from workflows.analyses.columns import Column, SiteColumns
from workflows.analyses.query import (
    MOST_COLUMNS,
    Answer,
    Finding,
    Query,
    bounds_misfit,
    counted_sites,
)
from workflows.selection import Misfit

SUMS: Final = "sums"
COUNT, SUM, SQUARES, BELOW, ABOVE = range(5)


class Ranged(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A column with the range that its values are clipped to."""

    column: Column
    low: float
    high: float


class ColumnMean(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What was found of one column.

    Attributes:
        mean: Of the clipped values.
        variance: Of them, as a population's: divided by their number.
        below: Values that were raised to ``low``.
        above: Values that were lowered to ``high``.
    """

    column: Column
    mean: float
    variance: float
    below: int
    above: int


class MeanFinding(Finding, frozen=True, tag="mean"):
    """Means of all columns."""

    columns: tuple[ColumnMean, ...]

    @property
    def headers(self) -> tuple[str, ...]:
        return ("COLUMN", "MEAN", "VARIANCE", "CLIPPED")

    def rows(self) -> Iterator[tuple[str, ...]]:
        for one in self.columns:
            clipped = str(one.below + one.above)
            yield str(one.column), f"{one.mean:.6g}", f"{one.variance:.6g}", clipped


class Mean(Query, frozen=True, tag="mean"):
    """Mean, variance and number of the values in some columns.

    Attributes:
        columns: Which, and in which range; at least one.
    """

    columns: Annotated[tuple[Ranged, ...], Meta(min_length=1, max_length=MOST_COLUMNS)]

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        return {SUMS: (len(self.columns), 5)}

    def named(self) -> Iterator[tuple[str, Column]]:
        for index, one in enumerate(self.columns):
            yield f"columns[{index}].column", one.column

    def misfit(self, num_examples: int) -> Misfit | None:
        for index, one in enumerate(self.columns):
            fields = (f"columns[{index}].low", f"columns[{index}].high")
            if wrong := bounds_misfit(one.low, one.high, fields):
                return wrong
        return None

    def answer(self, site: SiteColumns, table: Parameters, round: int) -> Answer:
        sums = np.empty((len(self.columns), 5))
        for row, one in zip(sums, self.columns, strict=True):
            values = site.numbers(one.column)
            middle, half = _scale(one)
            u = np.clip((np.clip(values, one.low, one.high) - middle) / half, -1, 1)
            row[COUNT], row[SUM], row[SQUARES] = len(u), u.sum(), np.square(u).sum()
            row[BELOW], row[ABOVE] = (values < one.low).sum(), (values > one.high).sum()
        return {SUMS: sums}

    def finding(self, table: Parameters) -> MeanFinding:
        return MeanFinding(
            sites=counted_sites(table),
            examples=int(table[SUMS][0, 0, COUNT]),
            columns=tuple(
                _found(one, sums) for one, sums in zip(self.columns, table[SUMS][0], strict=True)
            ),
        )


def _scale(one: Ranged) -> tuple[float, float]:
    """Middle of the range, and half its width."""
    half = one.high / 2 - one.low / 2
    return one.low + half, half


def _found(one: Ranged, sums: np.ndarray) -> ColumnMean:
    middle, half = _scale(one)
    mean = sums[SUM] / sums[COUNT]
    return ColumnMean(
        column=one.column,
        mean=float(middle + half * mean),
        variance=float(half * half * max(0.0, sums[SQUARES] / sums[COUNT] - mean * mean)),
        below=int(sums[BELOW]),
        above=int(sums[ABOVE]),
    )
