"""Every number of a job has one canonical form, so that the job has a digest."""

from __future__ import annotations

from collections.abc import Iterator
from math import isfinite
from typing import Final

import msgspec

from workflows.capabilities import Capabilities
from workflows.job import Inconsistent, JobSpec

LARGEST_INTEGER: Final = 2**53 - 1


def require_canonical(spec: JobSpec, _: Capabilities) -> None:
    """Every number has one canonical form, so that the job has a digest."""
    for path, leaf in _leaves(msgspec.to_builtins(spec)):
        if isinstance(leaf, int) and abs(leaf) > LARGEST_INTEGER:
            raise Inconsistent((path,), f"{leaf} is beyond 2**53", "write a smaller number or text")
        if isinstance(leaf, float) and not isfinite(leaf):
            raise Inconsistent((path,), f"{leaf} is no JSON number", "write a finite number")


def _leaves(value: object, path: str = "") -> Iterator[tuple[str, object]]:
    match value:
        case dict():
            for key, part in value.items():
                yield from _leaves(part, f"{path}.{key}" if path else str(key))
        case list() | tuple():
            for index, part in enumerate(value):
                yield from _leaves(part, f"{path}[{index}]")
        case _:
            yield path, value
