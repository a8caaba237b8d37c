"""The inner loops of the fold in C (``loops.c``), built with the package where a compiler is.

numpy goes over a tile once for each operation and holds the interpreter in between; a loop here
goes once and lets other threads run. ``can_*`` says whether a loop takes an array: where it does
not, callers do the same with numpy. Both give the same bits, so what a machine has built does not
show in any result.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from strategies.update import Array

_COLUMNS: Final = 128
"""Of each row at a time, in ``exchange``; ``loops.c`` knows it too."""


def _load() -> ctypes.CDLL | None:
    spec = find_spec("strategies.kernels._loops")
    if spec is None or spec.origin is None:
        return None
    library = ctypes.CDLL(spec.origin)
    pointer, integer, real = ctypes.c_void_p, ctypes.c_int64, ctypes.c_double
    library.foedus_add.argtypes = pointer, pointer, integer, real, real, real, ctypes.c_uint64
    for loop in (library.foedus_exchange_int32_t, library.foedus_exchange_int64_t):
        loop.argtypes = pointer, pointer, integer, integer, pointer, integer
        loop.restype = None
    return library


library: ctypes.CDLL | None = _load()
"""None where it was not built."""


def can_add(x: Array) -> bool:
    """True if ``add`` takes ``x``: native float32, one after the other."""
    return (
        library is not None and x.dtype == np.float32 and x.flags.c_contiguous and x.flags.aligned
    )


def add(
    x: Array,
    total: NDArray[np.int64],
    factor: float,
    rounder: float,
    magnitude: float,
    weight: int,
) -> bool:
    """Add ``weight`` times each entry of ``x``, times ``factor``, to ``total`` in the ring.

    Args:
        x: Values for which ``can_add`` holds.
        total: As many sums, one after the other; they may wrap.
        factor: What values are multiplied by in float64.
        rounder: What brings them to the ring's resolution (``strategies.ring.ROUNDER``).
        magnitude: Largest absolute value that is let pass.
        weight: How often they count; less than 0 takes them out again.

    Returns:
        False, and nothing is added, if a value is NaN, infinite or beyond ``magnitude``.
    """
    if library is None or not total.flags.carray or total.size != x.size:
        raise ValueError("add takes arrays of one length that lie one after the other")
    arrays = x.ctypes.data, total.ctypes.data, x.size
    return bool(library.foedus_add(*arrays, factor, rounder, magnitude, weight))


def can_exchange(rows: NDArray[Any]) -> bool:
    """True if ``exchange`` takes ``rows``: a matrix of int32 or int64, row after row."""
    is_known = rows.dtype in (np.int32, np.int64)
    return library is not None and is_known and rows.ndim == 2 and rows.flags.carray


def exchange(rows: NDArray[Any], network: Sequence[tuple[int, int]]) -> None:
    """Put the lower of each pair of values of a column into the first row of a comparator.

    Args:
        rows: For which ``can_exchange`` holds; changed in place, each column by itself.
        network: Comparators, pairs of row numbers, in order.
    """
    pairs = np.array(network, np.int32).reshape(-1, 2)
    if library is None or (pairs.size and not 0 <= pairs.min() <= pairs.max() < len(rows)):
        raise ValueError(f"exchange takes comparators of {len(rows)} rows")
    loop = (
        library.foedus_exchange_int32_t if rows.itemsize == 4 else library.foedus_exchange_int64_t
    )
    near = np.zeros((len(rows), _COLUMNS), rows.dtype)
    loop(rows.ctypes.data, near.ctypes.data, *rows.shape, pairs.ctypes.data, len(pairs))
