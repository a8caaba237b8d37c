from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from control_plane.api.ranges import (
    ByteRange,
    PreconditionFailed,
    RangeNotSatisfiable,
    may_resume,
    names,
    parse_range,
    require_match,
)


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        pytest.param("bytes=0-0", (0, 1), id="the first byte"),
        pytest.param("bytes=0-", (0, 10), id="from the start"),
        pytest.param("bytes=4-", (4, 10), id="from the middle"),
        pytest.param("bytes=4-6", (4, 7), id="the middle"),
        pytest.param("bytes=4-400", (4, 10), id="an end beyond the end is the end"),
        pytest.param("bytes=-3", (7, 10), id="the last three"),
        pytest.param("bytes=-300", (0, 10), id="more last bytes than there are"),
        pytest.param("bytes= 4 - 6", (4, 7), id="spaces"),
    ],
)
def test_a_single_range(header: str, expected: tuple[int, int]) -> None:
    assert parse_range(header, 10) == ByteRange(*expected, 10)


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "bytes",
        "bytes=",
        "bytes=-",
        "bytes=6-4",
        "bytes=a-b",
        "bytes=--1",
        "bytes=0x1-2",
        "bytes=1-2,4-5",
        "lines=1-2",
        "bytes=" + "9" * 5000 + "-",
        "bytes=\u0661-\u0662",
    ],
)
def test_what_is_not_a_single_range_of_bytes_means_the_whole(header: str | None) -> None:
    assert parse_range(header, 10) is None


@pytest.mark.parametrize("header", ["bytes=10-", "bytes=10-12", "bytes=999-", "bytes=-0"])
def test_past_the_end_cannot_be_satisfied(header: str) -> None:
    with pytest.raises(RangeNotSatisfiable) as refused:
        parse_range(header, 10)

    assert refused.value.size_bytes == 10


def test_nothing_of_an_empty_object_can_be_had() -> None:
    with pytest.raises(RangeNotSatisfiable):
        parse_range("bytes=0-", 0)


@given(st.text(alphabet="bytes=-0123456789, ", max_size=20), st.integers(0, 50))
def test_a_range_is_never_outside(header: str, size: int) -> None:
    try:
        part = parse_range(header, size)
    except RangeNotSatisfiable:
        return

    if part is not None:
        assert 0 <= part.start < part.stop <= size


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (None, False),
        ("*", True),
        ('"a"', True),
        ('W/"a"', True),
        ('"b", "a"', True),
        ('"b"', False),
        ("a", False),
        ("", False),
    ],
)
def test_entity_tags(header: str | None, expected: bool) -> None:
    assert names(header, "a") is expected


def test_a_download_is_resumed_only_of_the_same_version() -> None:
    assert may_resume(None, "a")
    assert may_resume('"a"', "a")
    assert not may_resume('"b"', "a")
    assert not may_resume("Wed, 21 Oct 2026 07:28:00 GMT", "a")


def test_a_change_of_another_version_is_refused() -> None:
    require_match(None, "2")
    require_match('"2"', "2")
    require_match("*", "2")

    with pytest.raises(PreconditionFailed):
        require_match('"1"', "2")
