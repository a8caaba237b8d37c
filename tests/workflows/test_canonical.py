"""One sequence of bytes per value."""

from __future__ import annotations

import hashlib
from typing import Any

import msgspec
import pytest
import rfc8785
from hypothesis import given
from hypothesis import strategies as st

from workflows.canonical import canonical_bytes, digest_value

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53) + 1, 2**53 - 1) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=8,
)


class Point(msgspec.Struct, frozen=True):
    y: float
    x: int


@given(JSON)
def test_the_quick_way_writes_what_the_scheme_does(value: Any) -> None:
    assert canonical_bytes(value) == rfc8785.dumps(value)


def test_keys_are_sorted_and_nothing_is_between_them() -> None:
    assert canonical_bytes(Point(y=0.5, x=1)) == b'{"x":1,"y":0.5}'


@pytest.mark.parametrize(
    ("number", "text"),
    [(1.0, b"1"), (-0.0, b"0"), (1e-7, b"1e-7"), (1e21, b"1e+21"), (0.1, b"0.1")],
)
def test_numbers_have_the_form_of_rfc_8785(number: float, text: bytes) -> None:
    assert canonical_bytes(number) == text


@given(JSON)
def test_the_bytes_mean_the_value(value: object) -> None:
    assert msgspec.json.decode(canonical_bytes(value)) == value
    assert canonical_bytes(msgspec.json.decode(canonical_bytes(value))) == canonical_bytes(value)


@given(st.dictionaries(st.text(max_size=3), st.integers(0, 9), min_size=2))
def test_the_order_of_a_mapping_does_not_show(value: dict[str, int]) -> None:
    assert canonical_bytes(dict(reversed(value.items()))) == canonical_bytes(value)


@pytest.mark.parametrize("value", [2**53, float("nan"), float("inf")], ids=str)
def test_what_has_no_canonical_form_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match=r"."):
        canonical_bytes(value)


def test_a_value_is_named_by_its_bytes() -> None:
    expected = hashlib.sha256(b'{"x":1,"y":2}').hexdigest()
    assert digest_value(Point(y=2, x=1)) == f"sha256:{expected}"
