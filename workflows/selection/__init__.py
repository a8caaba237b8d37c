"""Ways to draw the cohort of a round, each a value of its own.

A kind is added by adding a module here; it then appears in ``cohort.selection`` of a job.
"""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules
from typing import TYPE_CHECKING, Union

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

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")

KINDS: dict[str, type[Selection]] = {
    str(cls.__struct_config__.tag): cls
    for cls in sorted(Selection.__subclasses__(), key=lambda cls: str(cls.__struct_config__.tag))
}

if TYPE_CHECKING:
    AnySelection = Selection
else:
    AnySelection = Union[tuple(KINDS.values())]  # noqa: UP007 - built at run time
