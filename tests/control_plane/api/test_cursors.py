from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from control_plane.api.cursors import CursorInvalid, Cursors

CURSORS = Cursors((b"k" * 32,))


@given(st.text(max_size=80))
def test_what_was_sealed_can_be_opened(position: str) -> None:
    assert CURSORS.open("/v1/jobs", CURSORS.seal("/v1/jobs", position)) == position


@given(st.integers(min_value=0), st.sampled_from("ABCxyz019-_"))
def test_an_altered_cursor_is_refused(place: int, letter: str) -> None:
    cursor = CURSORS.seal("/v1/jobs", "job-0001")
    place %= len(cursor)
    altered = cursor[:place] + letter + cursor[place + 1 :]
    assume(altered != cursor)

    with pytest.raises(CursorInvalid):
        CURSORS.open("/v1/jobs", altered)


@pytest.mark.parametrize(
    "text", ["", "a", "====", "é", "\N{SNOWMAN}" * 30, "A" * 400, "a b", "%00"]
)
def test_noise_is_refused(text: str) -> None:
    with pytest.raises(CursorInvalid):
        CURSORS.open("/v1/jobs", text)


def test_a_cursor_of_another_list_or_filter_is_refused() -> None:
    cursor = CURSORS.seal("/v1/jobs?phase=failed", "job-0001")

    with pytest.raises(CursorInvalid):
        CURSORS.open("/v1/jobs?phase=running", cursor)


def test_a_cursor_of_another_server_is_refused() -> None:
    with pytest.raises(CursorInvalid):
        CURSORS.open("/v1/jobs", Cursors((b"x" * 32,)).seal("/v1/jobs", "job-0001"))


def test_the_key_does_not_show() -> None:
    assert "kkk" not in repr(CURSORS)


def test_what_an_earlier_key_sealed_is_opened_and_the_newest_seals() -> None:
    old, new = Cursors((b"o" * 32,)), Cursors((b"n" * 32,))
    both = Cursors((b"n" * 32, b"o" * 32))

    assert both.open("/v1/jobs", old.seal("/v1/jobs", "job-0001")) == "job-0001"
    assert new.open("/v1/jobs", both.seal("/v1/jobs", "job-0001")) == "job-0001"
    with pytest.raises(CursorInvalid):
        old.open("/v1/jobs", both.seal("/v1/jobs", "job-0001"))
