"""Loops in C against the same with numpy: every bit is the same."""

from __future__ import annotations

import shutil
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from strategies import ModelUpdate, Ring, UpdateRefused, kernels
from strategies.kept import middle_of_columns, sort_columns

COMPILER = (sysconfig.get_config_var("CC") or "cc").split()[0]
needs_compiler = pytest.mark.skipif(
    shutil.which(COMPILER) is None,
    reason=f"NOT TESTED: the loops in C need {COMPILER}; install it and run make install again",
)
RING = Ring(fraction_bits=24, magnitude=64.0, max_weight=1 << 20)


@contextmanager
def numpy_only() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels, "library", None)
        yield


def sums(x: np.ndarray, before: np.ndarray, weight: int, factor: float) -> np.ndarray | str:
    total = {"w": before.copy()}
    try:
        RING.add(ModelUpdate("a", 1, {"w": x}, weight), total, factor)
    except UpdateRefused as refused:
        np.testing.assert_array_equal(total["w"], before)
        return str(refused)
    return total["w"]


@needs_compiler
def test_they_are_built() -> None:
    assert kernels.library is not None


@needs_compiler
@given(
    hnp.arrays(np.float32, st.integers(0, 300), elements=st.floats(width=32)),
    st.integers(1, RING.max_weight),
    st.sampled_from([1.0, 0.5, 1 / 3, 0.0]),
)
def test_any_values_are_added_or_refused_alike(x: np.ndarray, weight: int, factor: float) -> None:
    before = np.arange(x.size, dtype=np.int64) - 7
    mine = sums(x, before, weight, factor)
    with numpy_only():
        other = sums(x, before, weight, factor)
    assert type(mine) is type(other)
    np.testing.assert_array_equal(mine, other)


@needs_compiler
@given(
    hnp.arrays(np.float32, st.integers(1, 2000), elements=st.floats(-64, 64, width=32)),
    st.integers(1, RING.max_weight),
    st.sampled_from([1.0, 0.7]),
)
def test_values_within_the_ring_are_added_alike(x: np.ndarray, weight: int, factor: float) -> None:
    mine = sums(x, np.zeros(x.size, np.int64), weight, factor)
    with numpy_only():
        other = sums(x, np.zeros(x.size, np.int64), weight, factor)
    np.testing.assert_array_equal(mine, other)


@needs_compiler
@pytest.mark.parametrize("wrong", [np.nan, np.inf, -65.0])
@pytest.mark.parametrize("at", [0, 4095, 4096, 9999])
def test_what_was_added_before_a_wrong_value_is_taken_out_again(wrong: float, at: int) -> None:
    x = np.linspace(-64, 64, 10_000, dtype=np.float32)
    x[at] = wrong
    before = np.arange(x.size, dtype=np.int64)
    assert isinstance(sums(x, before, 3, 1.0), str)


@needs_compiler
@given(
    st.sampled_from([np.int32, np.int64]).flatmap(
        lambda dtype: hnp.arrays(dtype, st.tuples(st.integers(1, 40), st.integers(1, 300)))
    )
)
def test_columns_are_sorted(rows: np.ndarray) -> None:
    expected = np.sort(rows, axis=0)
    np.testing.assert_array_equal(np.stack(sort_columns(rows.copy())), expected)
    n = len(rows)
    middle = np.stack(middle_of_columns(rows.copy(), (n - 1) // 2, n // 2 + 1))
    np.testing.assert_array_equal(np.sort(middle, axis=0), expected[(n - 1) // 2 : n // 2 + 1])


@needs_compiler
def test_what_lies_otherwise_in_memory_is_left_to_numpy() -> None:
    matrix = np.ones((4, 6), np.float32)
    assert kernels.can_add(matrix[1])
    assert not kernels.can_add(matrix[:, 1])
    assert not kernels.can_add(matrix[1].astype(">f4"))
    assert not kernels.can_add(matrix[1].astype(np.float16))
    assert not kernels.can_exchange(matrix.astype(np.int32)[:, ::2])
    assert not kernels.can_exchange(matrix.astype(np.int16))


def test_lengths_and_rows_that_do_not_fit_are_refused() -> None:
    x, rows = np.ones(4, np.float32), np.ones((2, 3), np.int32)
    with pytest.raises(ValueError, match="one length"):
        kernels.add(x, np.zeros(3, np.int64), 1.0, 1.0, 1.0, 1)
    for pair in ((0, 2), (-1, 1)):
        with pytest.raises(ValueError, match="2 rows"):
            kernels.exchange(rows, [pair])
