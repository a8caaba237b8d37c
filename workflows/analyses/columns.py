"""Columns of a data set, by name or by number, as queries see them.

A feature is named as its file names it, or numbered from 0 in row order; the label goes by the name
that ``data.label`` has. Features are float32 in every data set; a label is a number or a text.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any, Final

import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from workflows.data.examples import DataError, Examples
from workflows.data.labels import Class

Column = Annotated[int, Meta(ge=0)] | Annotated[str, Meta(min_length=1, max_length=200)]
NAMES_SHOWN: Final = 12


@dataclass(frozen=True, slots=True)
class Columns:
    """The columns there are.

    Attributes:
        names: Of the features; empty where they have none.
        num_features: Numbers in one example.
        label: Name of the label.
    """

    names: tuple[str, ...]
    num_features: int
    label: str

    def position(self, column: Column) -> int | None:
        """Number of the feature that ``column`` names; None for the label.

        Raises:
            DataError: There is no such column.
        """
        if problem := self.problem(column):
            raise DataError(f"{problem}; {self.mend(column)}")
        if isinstance(column, int):
            return column
        return self.names.index(column) if column in self.names else None

    def problem(self, column: Column) -> str:
        """Why there is no such column; empty if there is."""
        if isinstance(column, int):
            if column < self.num_features:
                return ""
            return f"there is no feature {column}, they are numbered from 0 to " + str(
                self.num_features - 1
            )
        return "" if column in (*self.names, self.label) else f"there is no column `{column}`"

    def mend(self, column: Column) -> str:
        """What there is instead."""
        known = (*self.names, self.label)
        close = difflib.get_close_matches(str(column), known, n=3)
        shown = close or known[:NAMES_SHOWN]
        more = (
            "" if close or len(known) <= NAMES_SHOWN else f", and {len(known) - NAMES_SHOWN} more"
        )
        named = ", ".join(f"`{name[:60]}`" for name in shown)
        hint = "" if self.names else f", or a feature's number below {self.num_features}"
        return f"{'did you mean' if close else 'there are'} {named}{more}{hint}"


@dataclass(frozen=True, eq=False)
class SiteColumns:
    """One site's examples, column by column.

    Attributes:
        examples: All that it has.
        known: Which columns they have.
        classes: What each class of the label is called; empty for real-valued labels.
    """

    examples: Examples
    known: Columns
    classes: tuple[Class, ...]

    def __len__(self) -> int:
        return len(self.examples)

    def numbers(self, column: Column) -> NDArray[np.float64]:
        """Values of a column, all finite.

        Raises:
            DataError: It holds text, or something that is no finite number.
        """
        position = self.known.position(column)
        if position is not None:
            values = self._table[:, position].astype(np.float64)
        elif not self.classes:
            values = self.examples.y.astype(np.float64)
        elif all(isinstance(name, int) for name in self.classes):
            values = np.array(self.classes, np.float64)[self.examples.y]
        else:
            raise DataError(
                f"column `{column}` holds text, not numbers; ask for count or heavy-hitters"
            )
        if not np.isfinite(values).all():
            raise DataError(
                f"column `{column}` holds NaN or infinity; fill the cell or drop the row"
            )
        return values

    def texts(self, column: Column) -> tuple[list[str], NDArray[np.intp]]:
        """Distinct values of a column as text, and which of them each example has.

        Numbers are written as briefly as they can be read again, whole ones without a point.

        Raises:
            DataError: It holds something that is no finite number.
        """
        if self.known.position(column) is None and self.classes:
            return [str(name) for name in self.classes], self.examples.y.astype(np.intp)
        distinct, which = np.unique(self.numbers(column).astype(np.float32), return_inverse=True)
        return [written(value) for value in distinct], which.reshape(-1)

    @cached_property
    def _table(self) -> np.ndarray:
        return self.examples.x.reshape(len(self.examples), -1)


def written(value: float | int | str | np.floating[Any]) -> str:
    """A cell as text: ``7`` for 7 and 7.0, ``0.1`` for the float32 nearest to it."""
    if isinstance(value, str):
        return value
    if value == 0:
        return "0"  # of either sign
    if isinstance(value, int):
        return str(value)
    with np.errstate(over="ignore"):
        return np.format_float_positional(np.float32(value), trim="-")
