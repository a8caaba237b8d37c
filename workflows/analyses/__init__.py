"""Questions about the sites' data whose answers are sums, each a value of its own.

A kind is added by adding a module here; it then appears in ``program.query`` of a job.
"""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules
from typing import TYPE_CHECKING, Union

from workflows.analyses.query import Finding, Query

__all__ = ("KINDS", "AnyFinding", "AnyQuery", "Finding", "Query")

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")

KINDS: dict[str, type[Query]] = {
    str(cls.__struct_config__.tag): cls
    for cls in sorted(Query.__subclasses__(), key=lambda cls: str(cls.__struct_config__.tag))
}

if TYPE_CHECKING:
    AnyQuery = Query
    AnyFinding = Finding
else:
    AnyQuery = Union[tuple(KINDS.values())]  # noqa: UP007 - built at run time
    AnyFinding = Union[tuple(Finding.__subclasses__())]  # noqa: UP007 - as above
