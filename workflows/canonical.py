"""One sequence of bytes per value, so that a digest or a signature means the value.

Source: RFC 8785 (JSON Canonicalization Scheme), through the ``rfc8785`` package.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec
import rfc8785

from sharing.object_store import Digest, digest_of

LARGEST: Final = 2**53 - 1
_encoder = msgspec.json.Encoder(order="sorted")


def canonical_bytes(value: Any) -> bytes:  # noqa: ANN401 - any msgspec value
    """``value`` as canonical JSON; integers beyond 2**53 are refused by the scheme."""
    built = msgspec.to_builtins(value)
    return _encoder.encode(built) if _is_plain(built) else rfc8785.dumps(built)


def _is_plain(built: Any) -> bool:  # noqa: ANN401 - whatever msgspec builds
    """True if a plain encoder writes ``built`` as the scheme wants it, ten times faster.

    That is where there are no fractions, no long integers, and no keys or text beyond ASCII.
    """
    kind: type = type(built)
    if kind is str:
        return bool(built.isascii())
    if kind is int:
        return bool(-LARGEST <= built <= LARGEST)
    if kind is dict:
        return all(map(_is_plain, built)) and all(map(_is_plain, built.values()))
    if kind is list or kind is tuple:
        return all(map(_is_plain, built))
    return built is None or kind is bool


def digest_value(value: Any) -> Digest:  # noqa: ANN401 - any msgspec value
    """Name of ``value``: the digest of its canonical bytes."""
    return digest_of(canonical_bytes(value))
