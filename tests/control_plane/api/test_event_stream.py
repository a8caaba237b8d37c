from __future__ import annotations

from datetime import UTC, datetime

import msgspec
import pytest

from clients.resources import Event
from control_plane.api.decoding import Undecodable
from control_plane.api.event_stream import encode, resume_after


def test_an_event_is_four_lines_whatever_it_says() -> None:
    event = Event(
        id=7,
        kind="waiting",
        at=datetime(2026, 11, 21, tzinfo=UTC),
        attempt=1,
        fields={"reason": "2 of 5\nsites\r\n\u2028 event: forged"},
    )

    identity, kind, data, *end = (
        encode(event.id, event.kind, msgspec.json.encode(event)).decode().split("\n")
    )

    assert (identity, kind, end) == ("id: 7", "event: waiting", ["", ""])
    assert msgspec.json.decode(data.removeprefix("data: "), type=Event) == event


@pytest.mark.parametrize(
    ("header", "after", "expected"),
    [(None, 0, 0), (None, 4, 4), ("7", 0, 7), ("7", 4, 7), (" 7 ", None, 7), ("", 4, 4)],
)
def test_where_a_watcher_continues(header: str | None, after: int, expected: int) -> None:
    assert resume_after(header, after) == expected


@pytest.mark.parametrize("header", ["x", "-1", "1.5", "9" * 40, "\u0663"])
def test_an_id_that_no_event_has_is_refused(header: str) -> None:
    with pytest.raises(Undecodable):
        resume_after(header, 0)
