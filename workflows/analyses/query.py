"""The shape of a query: a frozen value with a site's half, and what its sums mean.

All sums of a query lie in one table of float64 arrays whose first axis is the round. In a round a
site answers with such a table: its own sums in the row of the round, zeros elsewhere. The server
adds the answers up exactly (``strategies.tally``) and hands the table out again, so both halves
find the next question, and at last the finding, in what was counted before; nothing else is kept.
Every entry is at most the number of a site's examples, from which follows the ring.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import isfinite
from typing import Annotated, Final

import msgspec
import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from strategies import Parameters
from workflows.analyses.columns import Column, Columns, SiteColumns
from workflows.capabilities import Parameter
from workflows.selection import Misfit

Sums = NDArray[np.float64]
Answer = Mapping[str, Sums]
"""What a site answers in one round, by name of the array."""
Bins = Annotated[int, Meta(ge=2, le=4096)]
SITES: Final = "sites"
MOST_COLUMNS: Final = 1_000


class Finding(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind"
):
    """What a query found; the content of ``result.json``.

    Attributes:
        sites: Sites that answered in each round. Where rounds differ, a later one refines an
            interval or a prefix that was found with other sites.
        examples: Counted in the last round.
    """

    sites: tuple[int, ...]
    examples: int

    @property
    def headers(self) -> tuple[str, ...]:
        """Of the table in which people read it."""
        raise NotImplementedError

    def rows(self) -> Iterator[tuple[str, ...]]:
        """Of the table in which people read it."""
        raise NotImplementedError


class Query(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind"
):
    """A question about the examples of all sites. Its methods are pure."""

    @property
    def num_rounds(self) -> int:
        """Rounds that it takes."""
        return 1

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Of the answer in one round, by name."""
        raise NotImplementedError

    def named(self) -> Iterator[tuple[str, Column]]:
        """Columns that it asks about, each with the field that names it."""
        raise NotImplementedError

    def answer(self, site: SiteColumns, table: Parameters, round: int) -> Answer:
        """A site's half: its sums in a round.

        Args:
            site: Its examples.
            table: What was counted in the rounds before.
            round: From 0.

        Raises:
            DataError: A column does not hold what is asked for.
        """
        raise NotImplementedError

    def finding(self, table: Parameters) -> Finding:
        """What the whole table says."""
        raise NotImplementedError

    def misfit(self, num_examples: int) -> Misfit | None:
        """What keeps the query from being asked over so many examples; None if nothing does.

        Fields are named within the query.
        """
        return None

    def blank(self) -> dict[str, Sums]:
        """The table before the first round."""
        shapes = {name: (self.num_rounds, *shape) for name, shape in self.shapes.items()}
        return {name: np.zeros(shape) for name, shape in shapes.items()} | {
            SITES: np.zeros(self.num_rounds)
        }

    def parameters(self) -> tuple[Parameter, ...]:
        """The arrays of the table, as admission sees them."""
        return tuple(
            Parameter(name=name, shape=x.shape, dtype=x.dtype.name)
            for name, x in sorted(self.blank().items())
        )

    def answered(self, site: SiteColumns, table: Parameters) -> dict[str, Sums]:
        """What a site adds to the table in the round that comes next.

        Raises:
            DataError: A column does not hold what is asked for.
        """
        round_ = int(np.count_nonzero(table[SITES]))
        added = self.blank()
        added[SITES][round_] = 1
        for name, sums in self.answer(site, table, round_).items():
            added[name][round_] = sums
        return added


def unknown_column(query: Query, known: Columns) -> Misfit | None:
    """The first column that the data has not, if there is one."""
    for field, column in query.named():
        if problem := known.problem(column):
            return Misfit((field,), problem, known.mend(column))
    return None


def bounds_misfit(
    low: float, high: float, fields: Sequence[str] = ("low", "high")
) -> Misfit | None:
    """What is wrong with a range of values, if anything is."""
    if low < high and isfinite(high - low):
        return None
    if low < high:
        return Misfit(tuple(fields), "the range is too wide", "bring them nearer to each other")
    return Misfit(tuple(fields), f"{low:g} is not below {high:g}", "give the lower bound first")


def counted_sites(table: Parameters) -> tuple[int, ...]:
    """Sites that answered in each round."""
    return tuple(int(number) for number in table[SITES])
