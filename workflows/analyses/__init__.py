"""Questions about the sites' data whose answers are sums, each a value of its own.

A kind is added by adding a module here; it then appears in ``program.query`` of a job.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Union

from strategies.kinds import kinds_of
from workflows.analyses.query import Finding, Query

__all__ = ("KINDS", "AnyFinding", "AnyQuery", "Finding", "Query")

KINDS = kinds_of(Query, __name__, __path__)

if TYPE_CHECKING:
    AnyQuery = Query
    AnyFinding = Finding
else:
    AnyQuery = Union[tuple(KINDS.values())]  # noqa: UP007 - built at run time
    AnyFinding = Union[tuple(Finding.__subclasses__())]  # noqa: UP007 - as above
