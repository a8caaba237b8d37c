"""A column of labels, taken in pieces: which classes there are, or that it is real-valued.

Whole numbers, text and truth values are classes, numbered in sorted order; numbers of a floating
type, or with a decimal point in a .csv file, are real-valued targets.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, TypeAlias

import numpy as np

from workflows.data.examples import DataError, Unreadable

MAX_CLASSES: Final = 1_000
Class: TypeAlias = int | str


@dataclass(frozen=True, slots=True, eq=False)
class Labels:
    """All labels of a data set.

    Attributes:
        y: Classes as int64 from 0, or targets as float32.
        classes: What each class was called; empty for targets.
    """

    y: np.ndarray
    classes: tuple[Class, ...]


class LabelColumn:
    """Labels seen so far, in memory bounded by eight bytes each and a thousand names.

    Args:
        name: Of the column or array, for messages.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._codes: dict[Class, int] | None = {}
        self._by_code: list[np.ndarray] = []
        self._values: list[np.ndarray] | None = []
        self._is_whole = True
        self._num_rows = 0

    def add(self, cells: np.ndarray) -> None:
        """Take the next labels: of text, or of a number type.

        Raises:
            Unreadable: One is empty, NaN or infinite.
            DataError: They are text, of too many kinds.
        """
        if cells.dtype.kind in "fc":
            self._is_whole, self._codes = False, None
            self._take_values(cells)
        else:
            texts = cells.dtype.kind not in "iub"
            distinct, inverse = np.unique(
                cells if texts else cells.astype(np.int64), return_inverse=True
            )
            self._take_codes(distinct.tolist(), inverse)
            self._take_values(self._parsed(distinct)[inverse] if texts else cells)
        self._num_rows += len(cells)
        if self._codes is None and self._values is None:
            raise DataError(
                f"`{self._name}` holds more than {MAX_CLASSES:,} different texts, too many for "
                "classes; name the column with the labels"
            )

    def finish(self) -> Labels:
        """The labels as numbers.

        Raises:
            DataError: There are too many classes, or only one.
        """
        if not self._is_whole and self._values is not None:
            return Labels(np.concatenate(self._values).astype(np.float32), ())
        if self._codes is None:
            raise DataError(
                f"`{self._name}` holds more than {MAX_CLASSES:,} different whole numbers, too many "
                "for classes; write real-valued targets with a decimal point or as floats"
            )
        names: list[Class] = [int(n) if self._is_whole else str(n) for n in self._codes]
        classes = sorted(set(names), key=lambda name: (isinstance(name, str), name))
        if len(classes) < 2:
            raise DataError(f"`{self._name}` is the same in every row; there is nothing to learn")
        rank = {name: number for number, name in enumerate(classes)}
        final = np.array([rank[name] for name in names], np.int64)
        return Labels(final[np.concatenate(self._by_code)], tuple(classes))

    def _take_codes(self, distinct: list[Class], inverse: np.ndarray) -> None:
        if self._codes is None:
            return
        for name in distinct:
            self._codes.setdefault(name, len(self._codes))
        if len(self._codes) > MAX_CLASSES:
            self._codes, self._by_code = None, []
            return
        codes = np.array([self._codes[name] for name in distinct], np.int16)
        self._by_code.append(codes[inverse])

    def _parsed(self, distinct: np.ndarray) -> np.ndarray:
        """Texts as numbers; from the first that is none on, all that came are classes."""
        try:
            values = np.array([float(text) for text in distinct.tolist()])
        except ValueError:
            empty = [text for text in distinct.tolist() if not str(text).strip()]
            if empty:
                raise Unreadable(
                    f"`{self._name}` has an empty cell; fill it or drop the row"
                ) from None
            self._values, self._is_whole = None, False
            return np.zeros(len(distinct))
        try:
            [int(text) for text in distinct.tolist()]
        except ValueError:
            self._is_whole = False
        return values

    def _take_values(self, values: np.ndarray) -> None:
        if self._values is None:
            return
        finite = np.isfinite(values)
        if not finite.all():
            row = self._num_rows + int(np.argmin(finite)) + 1
            raise Unreadable(f"row {row} of `{self._name}` is NaN or infinite; fill it or drop it")
        self._values.append(np.asarray(values, np.float64))
