"""Which bytes of a representation were asked for, and whether the caller has it already.

Source: RFC 9110, sections 8.8 (validators), 13 (preconditions) and 14 (ranges). We serve single
ranges of bytes; a header that asks for anything else is ignored, as section 14.2 allows, and the
whole is served.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

_BYTE_RANGE: Final = re.compile(r"bytes=(?P<first>\d*)-(?P<last>\d*)", re.ASCII)
_ENTITY_TAG: Final = re.compile(r'(?:W/)?"(?P<opaque>[^"]*)"')
_MOST_DIGITS: Final = 19


class RangeNotSatisfiable(Exception):
    """The range starts past the end.

    Attributes:
        size_bytes: Length of the whole.
    """

    def __init__(self, size_bytes: int) -> None:
        super().__init__(f"the range lies past the end: there are {size_bytes} bytes")
        self.size_bytes = size_bytes


class PreconditionFailed(Exception):
    """The resource is not in the version that the caller means to change."""


@dataclass(frozen=True, slots=True)
class ByteRange:
    """A part of a representation.

    Attributes:
        start: First byte.
        stop: One past the last byte.
        size_bytes: Length of the whole.
    """

    start: int
    stop: int
    size_bytes: int

    @property
    def content_range(self) -> str:
        """The header's value."""
        return f"bytes {self.start}-{self.stop - 1}/{self.size_bytes}"


def parse_range(header: str | None, size_bytes: int) -> ByteRange | None:
    """The part that a ``Range`` header asks for; None for the whole.

    Raises:
        RangeNotSatisfiable: It starts past the end.
    """
    match = _BYTE_RANGE.fullmatch(header.replace(" ", "")) if header else None
    if match is None or max(map(len, match.groups())) > _MOST_DIGITS:
        return None
    first, last = match["first"], match["last"]
    if not first and not last:
        return None
    if not first:
        start, stop = max(0, size_bytes - int(last)), size_bytes
    else:
        start, stop = int(first), min(int(last) + 1 if last else size_bytes, size_bytes)
        if last and int(last) < start:
            return None
    if start >= size_bytes:
        raise RangeNotSatisfiable(size_bytes)
    return ByteRange(start, stop, size_bytes)


def entity_tag(opaque: str) -> str:
    """A strong validator as a header spells it."""
    return f'"{opaque}"'


def names(header: str | None, opaque: str) -> bool:
    """True if the entity tags of a conditional header are ``*``, or one of them is ``opaque``."""
    if header is None:
        return False
    if header.strip() == "*":
        return True
    return any(tag["opaque"] == opaque for tag in _ENTITY_TAG.finditer(header))


def may_resume(if_range: str | None, opaque: str) -> bool:
    """True unless ``If-Range`` names another version (or a date, which we never hand out)."""
    return if_range is None or if_range.strip() == entity_tag(opaque)


def require_match(if_match: str | None, opaque: str) -> None:
    """Raise unless the caller means this version, or does not care.

    Raises:
        PreconditionFailed: ``If-Match`` names other versions only.
    """
    if if_match is not None and not names(if_match, opaque):
        raise PreconditionFailed("it has changed since: fetch it again, then decide anew")
