"""How often each of some declared values occurs in a column, exact.

Values are declared, so that a site tells of none that nobody asked for; what else there is is
counted together. For values that nobody knows beforehand there are heavy hitters.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated

import numpy as np
from msgspec import Meta

from strategies import Parameters
from workflows.analyses.columns import Column, SiteColumns, written
from workflows.analyses.query import Answer, Finding, Query, counted_sites
from workflows.selection import Misfit

Cell = int | float | str


class CountFinding(Finding, frozen=True, tag="count"):
    """How often each value occurs.

    Attributes:
        values: As they were asked.
        counts: Of each.
        others: Examples with another value.
    """

    values: tuple[Cell, ...]
    counts: tuple[int, ...]
    others: int

    @property
    def headers(self) -> tuple[str, ...]:
        return ("VALUE", "COUNT")

    def rows(self) -> Iterator[tuple[str, ...]]:
        for value, count in zip(self.values, self.counts, strict=True):
            yield str(value), str(count)
        yield "(others)", str(self.others)


class Count(Query, frozen=True, tag="count"):
    """How often each value occurs in a column.

    Attributes:
        column: Which.
        values: Numbers or texts, each once; a number is the same however it is written.
    """

    column: Column
    values: Annotated[tuple[Cell, ...], Meta(min_length=1, max_length=4096)]

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        return {"counts": (len(self.values) + 1,)}

    def named(self) -> Iterator[tuple[str, Column]]:
        yield "column", self.column

    def misfit(self, num_examples: int) -> Misfit | None:
        seen: set[str] = set()
        for index, value in enumerate(self.values):
            if (text := written(value)) in seen:
                problem = f"{value!r} is asked for twice"
                return Misfit((f"values[{index}]",), problem, "name each value once")
            seen.add(text)
        return None

    def answer(self, site: SiteColumns, table: Parameters, round: int) -> Answer:
        place = {written(value): k for k, value in enumerate(self.values)}
        texts, which = site.texts(self.column)
        places = np.array([place.get(text, len(place)) for text in texts], np.intp)
        counts = np.bincount(places[which], minlength=len(place) + 1)
        return {"counts": counts.astype(np.float64)}

    def finding(self, table: Parameters) -> CountFinding:
        *counts, others = (int(count) for count in table["counts"][0])
        return CountFinding(
            sites=counted_sites(table),
            examples=sum(counts) + others,
            values=self.values,
            counts=tuple(counts),
            others=others,
        )
