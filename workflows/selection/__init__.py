"""Ways to draw the cohort of a round, each a value of its own.

A kind is added by adding a module here; it then appears in ``cohort.selection`` of a job.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Union

from strategies.kinds import kinds_of
from workflows.selection.selection import Asked, Drawing, Drawn, Misfit, Selection
from workflows.selection.uniform import Uniform

__all__ = (
    "KINDS",
    "AnySelection",
    "Asked",
    "Drawing",
    "Drawn",
    "Misfit",
    "Selection",
    "Uniform",
)

KINDS = kinds_of(Selection, __name__, __path__)

if TYPE_CHECKING:
    AnySelection = Selection
else:
    AnySelection = Union[tuple(KINDS.values())]  # noqa: UP007 - built at run time
