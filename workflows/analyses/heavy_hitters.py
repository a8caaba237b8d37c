"""Values that occur often in a column, of which nobody knows beforehand.

A value is its text in UTF-8 (``SiteColumns.texts``), padded with zero bytes to ``length``, and is
found half a byte at a time: in each round every site counts, for each prefix that was frequent
enough so far and each of the 16 ways to go on, its examples; a prefix is kept if all sites together
have ``threshold`` of them. No prefix is rarer than a value that begins with it, so every value of
at least ``threshold`` examples is found, with its exact count, and no other.

Source: the prefix tree of TrieHH, Zhu et al., "Federated Heavy Hitters Discovery with Differential
Privacy", AISTATS 2020, Algorithm 1, arXiv:1902.08534. There sampled users vote once each, which
is what makes it differentially private; here every example votes in every round, so counts are
exact and nothing is private but by the secrecy of a site's own sums.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Final

import msgspec
import numpy as np
from msgspec import Meta

from strategies import Parameters
from workflows.analyses.columns import Column, SiteColumns
from workflows.analyses.query import Answer, Finding, Query, Sums, counted_sites
from workflows.data.examples import DataError
from workflows.selection import Misfit

WAYS: Final = 16
MOST_ENTRIES: Final = 1 << 20


class Hitter(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A frequent value."""

    value: str
    count: int


class HeavyHittersFinding(Finding, frozen=True, tag="heavy-hitters"):
    """All frequent values, the most frequent first.

    Attributes:
        threshold: Examples that a value has at least.
        longer: Examples whose text has more than ``length`` bytes, which were left out.
    """

    threshold: int
    hitters: tuple[Hitter, ...]
    longer: int

    @property
    def headers(self) -> tuple[str, ...]:
        return ("VALUE", "COUNT")

    def rows(self) -> Iterator[tuple[str, ...]]:
        for one in self.hitters:
            yield one.value, str(one.count)


class HeavyHitters(Query, frozen=True, tag="heavy-hitters"):
    """Values that at least ``threshold`` examples have.

    Attributes:
        column: In which.
        threshold: Examples that a value must have over all sites together.
        length: Longest text that is looked for, in bytes of UTF-8; two rounds for each.
        most: Prefixes that there is room for. Examples by ``threshold`` can not be more.
    """

    column: Column
    threshold: Annotated[int, Meta(ge=1)]
    length: Annotated[int, Meta(ge=1, le=64)] = 8
    most: Annotated[int, Meta(ge=1, le=4096)] = 64

    @property
    def num_rounds(self) -> int:
        return 2 * self.length

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        return {"counts": (self.most, WAYS), "longer": ()}

    def named(self) -> Iterator[tuple[str, Column]]:
        yield "column", self.column

    def misfit(self, num_examples: int) -> Misfit | None:
        frequent = num_examples // self.threshold
        if frequent > self.most:
            return Misfit(
                ("threshold", "most"),
                f"{frequent} values could have {self.threshold} of {num_examples} examples, "
                f"more than the {self.most} there is room for",
                f"raise threshold to {num_examples // (self.most + 1) + 1}, or most to {frequent}",
            )
        if (entries := self.num_rounds * self.most * WAYS) > MOST_ENTRIES:
            return Misfit(
                ("length", "most"),
                f"the table has {entries} counts, more than {MOST_ENTRIES}",
                f"lower most to {MOST_ENTRIES // (self.num_rounds * WAYS)}, or length",
            )
        return None

    def answer(self, site: SiteColumns, table: Parameters, round: int) -> Answer:
        texts, which = site.texts(self.column)
        digits, is_longer = self._digits(texts)
        number = np.bincount(which, minlength=len(texts))
        prefix = np.where(is_longer, -1, 0)
        for row, place in enumerate(self._places(table, round)):
            prefix = np.where(prefix < 0, -1, place[prefix, digits[:, row]])
        here = prefix >= 0
        counts = np.zeros(self.shapes["counts"])
        np.add.at(counts, (prefix[here], digits[here, round]), number[here])
        return {"counts": counts, "longer": np.array(number[is_longer].sum(), np.float64)}

    def finding(self, table: Parameters) -> HeavyHittersFinding:
        prefixes: list[tuple[int, ...]] = [()]
        for place in self._places(table, self.num_rounds):
            prefixes = [(*prefixes[p], way) for p, way in np.argwhere(place[: len(prefixes)] >= 0)]
        last = table["counts"][-1]
        found = zip(prefixes, last[last >= self.threshold], strict=True)
        hitters = [Hitter(value=_text(digits), count=int(count)) for digits, count in found]
        longer = int(table["longer"][-1])
        return HeavyHittersFinding(
            sites=counted_sites(table),
            examples=int(table["counts"][0].sum()) + int(table["longer"][0]),
            threshold=self.threshold,
            hitters=tuple(sorted(hitters, key=lambda one: (-one.count, one.value))),
            longer=longer,
        )

    def _places(self, table: Parameters, round: int) -> Iterator[np.ndarray]:
        """For each round before ``round``: where a prefix that goes on so is next; -1 if nowhere.

        Shaped (prefixes, ways).
        """
        for counts in table["counts"][:round]:
            is_kept = counts >= self.threshold
            place = np.where(is_kept, np.cumsum(is_kept).reshape(counts.shape) - 1, -1)
            yield np.where(place < self.most, place, -1)

    def _digits(self, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        """Half bytes of each text, the higher first, and whether it is too long for that."""
        coded = [text.encode() for text in texts]
        if any(b"\0" in text for text in coded):
            raise DataError(f"column `{self.column}` holds a zero byte; take it out")
        padded = b"".join(text[: self.length].ljust(self.length, b"\0") for text in coded)
        octets = np.frombuffer(padded, np.uint8).reshape(len(texts), self.length)
        digits = np.stack([octets >> 4, octets & 15], axis=-1).reshape(len(texts), -1)
        return digits.astype(np.intp), np.array([len(text) > self.length for text in coded])


def _text(digits: tuple[int, ...]) -> str:
    octets: Sums = np.array(digits).reshape(-1, 2) @ np.array([16, 1])
    return bytes(octets.astype(np.uint8)).rstrip(b"\0").decode()
