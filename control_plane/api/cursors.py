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
        key: The server's secret, at least 32 bytes.
    """

    key: bytes

    def __repr__(self) -> str:
        return "Cursors()"

    def seal(self, scope: str, position: str) -> str:
        """A cursor that continues the list ``scope`` (its path and filter) after ``position``."""
        place = position.encode()
        return base64.urlsafe_b64encode(self._mac(scope, place) + place).decode().rstrip("=")

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
        if not hmac.compare_digest(cursor, self.seal(scope, position)):
            raise CursorInvalid("the cursor was altered, or belongs to another list or filter")
        return position

    def _mac(self, scope: str, place: bytes) -> bytes:
        message = scope.encode() + b"\0" + place
        return hmac.digest(self.key, message, hashlib.sha256)[:SEAL_BYTES]
