"""Names that are given once, and secrets."""

from __future__ import annotations

import hashlib
import secrets
from datetime import datetime
from typing import Final

TOKEN_PREFIX: Final = "foedus_"  # noqa: S105 - a prefix, so that a scanner of leaked secrets finds it
EXTERNAL_USER: Final = "user-oidc-"
"""How ids of users begin whom an identity provider vouches for."""
_ALPHABET: Final = "0123456789abcdefghjkmnpqrstvwxyz"


def new_id(kind: str, now: datetime) -> str:
    """An id as ``job-06bq...``: 64 bits of microseconds, to sort by, and 64 of chance.

    Base 32 in the alphabet of Crockford, whose order is that of ASCII.
    """
    value = int(now.timestamp() * 1_000_000) << 64 | secrets.randbits(64)
    return f"{kind}-" + "".join(_ALPHABET[value >> shift & 31] for shift in range(125, -1, -5))


def external_user_id(issuer: str, subject: str) -> str:
    """The one id of the user whom ``issuer`` knows as ``subject``: 128 bits of a digest."""
    digest = hashlib.sha256(f"{issuer}|{subject}".encode()).hexdigest()
    return EXTERNAL_USER + digest[:32]


def new_token() -> str:
    """A bearer token of 256 random bits."""
    return TOKEN_PREFIX + secrets.token_urlsafe(32)


def hash_of_token(token: str) -> str:
    """What is stored of a token. It has so much entropy that a slow hash would add nothing."""
    return hashlib.sha256(token.encode()).hexdigest()
