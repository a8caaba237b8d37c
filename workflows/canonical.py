"""One sequence of bytes per value, so that a digest or a signature means the value.

Source: RFC 8785 (JSON Canonicalization Scheme), through the ``rfc8785`` package.
"""

from __future__ import annotations

from typing import Any

import msgspec
import rfc8785

from sharing.object_store import Digest, digest_of


def canonical_bytes(value: Any) -> bytes:  # noqa: ANN401 - any msgspec value
    """``value`` as canonical JSON; integers beyond 2**53 are refused by the scheme."""
    return rfc8785.dumps(msgspec.to_builtins(value))


def digest_value(value: Any) -> Digest:  # noqa: ANN401 - any msgspec value
    """Name of ``value``: the digest of its canonical bytes."""
    return digest_of(canonical_bytes(value))
