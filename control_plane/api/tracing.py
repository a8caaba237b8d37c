"""One id per request, in its log lines, its problem and its answer.

Source: W3C Trace Context (``traceparent``); without one, the caller's ``X-Request-ID`` if it is
harmless, else a new id.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterable
from typing import Final

_PARENT: Final = re.compile(
    rb"[0-9a-f]{2}-(?P<trace>[0-9a-f]{32})-(?P<span>[0-9a-f]{16})-[0-9a-f]{2}"
)
_REQUEST_ID: Final = re.compile(rb"[A-Za-z0-9._-]{8,64}")
_NO_TRACE: Final = b"0" * 32


def read_parent_span(headers: Iterable[tuple[bytes, bytes]]) -> str:
    """The span that these headers say the request is part of; empty if they do not."""
    for name, value in headers:
        if name == b"traceparent" and (parent := _PARENT.fullmatch(value)):
            return parent["span"].decode()
    return ""


def read_trace(headers: Iterable[tuple[bytes, bytes]]) -> str:
    """The trace that these headers continue, or a new one."""
    request_id = b""
    for name, value in headers:
        if name == b"traceparent":
            parent = _PARENT.fullmatch(value)
            if parent and parent["trace"] != _NO_TRACE:
                return parent["trace"].decode()
        elif name == b"x-request-id" and _REQUEST_ID.fullmatch(value):
            request_id = value
    return request_id.decode() or secrets.token_hex(16)
