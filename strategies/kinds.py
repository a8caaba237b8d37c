"""The kinds of a tagged value: a module in a package is all it takes to add one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from importlib import import_module
from pkgutil import iter_modules
from typing import TypeVar

import msgspec

K = TypeVar("K", bound=msgspec.Struct)


def kinds_of(base: type[K], package: str, path: Iterable[str]) -> dict[str, type[K]]:
    """What the modules of a package define below ``base``, by tag, sorted; nothing abstract.

    Args:
        base: Of all of them.
        package: Its name; each of its modules is imported.
        path: Where it lies (``__path__``).
    """
    for module in iter_modules(path):
        import_module(f"{package}.{module.name}")
    kinds = {str(cls.__struct_config__.tag): cls for cls in _below(base)}
    return dict(sorted(kinds.items()))


def _below(cls: type[K]) -> Iterator[type[K]]:
    for sub in cls.__subclasses__():
        if "is_abstract" not in vars(sub):
            yield sub
        yield from _below(sub)
