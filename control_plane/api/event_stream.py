"""Server-sent events: how a job's events go over the wire, and where a watcher continues.

Source: WHATWG HTML, section 9.2 (server-sent events). An event's id is its number within the job,
so ``Last-Event-ID`` of any connection continues any other.
"""

from __future__ import annotations

import re
from typing import Final

from control_plane.api.decoding import Undecodable

MEDIA_TYPE: Final = "text/event-stream"
OPENING: Final = b"retry: 500\n\n"
HEARTBEAT: Final = b": still here\n\n"
_NUMBER: Final = re.compile(r"\d{1,15}", re.ASCII)


def encode(number: int, kind: str, data: bytes) -> bytes:
    """One event; ``data`` is its JSON, which has no line breaks."""
    return b"id: %d\nevent: %s\ndata: %s\n\n" % (number, kind.encode(), data)


def resume_after(last_event_id: str | None, after: int) -> int:
    """The number after which to continue; the header, which a browser resends, wins.

    Raises:
        Undecodable: The header is no event's id.
    """
    if last_event_id is None or not last_event_id.strip():
        return after
    if _NUMBER.fullmatch(last_event_id.strip()) is None:
        raise Undecodable("is not the id of an event", ("Last-Event-ID",), "Send a number.")
    return int(last_event_id)
