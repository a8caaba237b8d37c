"""What use cases answer with when it is more, or less, than a resource."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from sqlalchemy import ColumnElement, Select

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Slice(Generic[T]):
    """Some of a list.

    Attributes:
        items: In the order of the list.
        next: Where the next slice begins, to be handed back as it is; None if this is the last.
    """

    items: tuple[T, ...]
    next: str | None


@dataclass(frozen=True, slots=True)
class Versioned(Generic[T]):
    """Something that changes.

    Attributes:
        value: As it was.
        version: Grows with every change.
    """

    value: T
    version: int


def newest(
    query: Select[Any], place: ColumnElement[Any], limit: int, before: object = None
) -> Select[Any]:
    """``query``, newest first, and one row more than ``limit``.

    Args:
        query: Of the list.
        place: What a row is sorted by; it grows with time.
        limit: Of the page.
        before: The place after which the page begins; None for the first one.
    """
    if before is not None:
        query = query.where(place < before)
    return query.order_by(place.desc()).limit(limit + 1)


def cut(items: Sequence[tuple[str, T]], limit: int) -> Slice[T]:
    """At most ``limit`` of ``items``, each with the place it has in the list.

    ``items`` should have one more than ``limit`` if there are more.
    """
    kept = items[:limit]
    return Slice(tuple(item for _, item in kept), kept[-1][0] if len(items) > limit else None)
