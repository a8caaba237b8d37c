"""Cursors of lists: opaque to the caller, and worth nothing once altered.

A cursor is the position after which the next page starts, sealed by HMAC-SHA-256 together with the
list and the filter it belongs to. So nobody can read on where they may not, or in another list.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from dataclasses import dataclass
from typing import Final

SEAL_BYTES: Final = 16


class CursorInvalid(Exception):
    """The cursor was not made by this server for this list and filter."""


@dataclass(frozen=True, slots=True)
class Cursors:
    """Seals and opens cursors.

    Attributes:
        keys: The platform's own, at least 32 bytes each; the first one seals, all of them open.
    """

    keys: tuple[bytes, ...]

    def __repr__(self) -> str:
        return "Cursors()"

    def seal(self, scope: str, position: str) -> str:
        """A cursor that continues the list ``scope`` (its path and filter) after ``position``."""
        return _sealed(self.keys[0], scope, position)

    def open(self, scope: str, cursor: str) -> str:
        """The position in ``cursor``.

        Raises:
            CursorInvalid: It was altered, cut short, or made for another list or filter.
        """
        try:
            padded = cursor.encode("ascii") + b"=" * (-len(cursor) % 4)
            position = base64.b64decode(padded, altchars=b"-_", validate=True)[SEAL_BYTES:].decode()
        except ValueError as error:
            raise CursorInvalid("the cursor has not the form of one") from error
        if not any(hmac.compare_digest(cursor, _sealed(k, scope, position)) for k in self.keys):
            raise CursorInvalid("the cursor was altered, or belongs to another list or filter")
        return position


def _sealed(key: bytes, scope: str, position: str) -> str:
    place = position.encode()
    mac = hmac.digest(key, scope.encode() + b"\0" + place, hashlib.sha256)[:SEAL_BYTES]
    return base64.urlsafe_b64encode(mac + place).decode().rstrip("=")
