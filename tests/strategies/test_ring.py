"""The fixed-point ring: exactness, bounds, and the proof that nothing wraps."""

from __future__ import annotations

from fractions import Fraction

import msgspec
import numpy as np
import pytest
from hypothesis import given, reject
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from strategies import (
    Incompatible,
    ModelUpdate,
    NotFinite,
    OutOfRing,
    Ring,
    RingTooSmall,
    UpdateRefused,
)
from strategies.ring import TILE

RINGS = st.builds(
    Ring,
    fraction_bits=st.integers(1, 40),
    magnitude=st.floats(2.0**-20, 2.0**11),
    max_weight=st.integers(1, 2**30),
)


def one(x: np.ndarray, num_examples: int = 1) -> ModelUpdate:
    return ModelUpdate(site="site-0001", round=1, delta={"w": x}, num_examples=num_examples)


def encoded(ring: Ring, x: np.ndarray) -> np.ndarray:
    return ring.encode(one(x), {"w": x.shape})["w"]


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@given(ring=RINGS, data=st.data())
def test_an_entry_is_the_nearest_integer_with_halves_to_even(
    dtype: type[np.floating], ring: Ring, data: st.DataObject
) -> None:
    numbers = st.floats(-ring.magnitude, ring.magnitude)
    x = data.draw(arrays(np.float64, 5, elements=numbers)).astype(dtype)
    x = np.clip(x, -np.floor(ring.magnitude), np.floor(ring.magnitude)).astype(dtype)

    expected = [round(Fraction(float(value)) * 2**ring.fraction_bits) for value in x]

    assert encoded(ring, x).tolist() == expected


def test_halves_go_to_the_even_neighbour() -> None:
    x = np.array([0.25, 0.75, -0.25, -0.75, 1.25, 0.5])
    assert encoded(Ring(fraction_bits=1), x).tolist() == [0, 2, 0, -2, 2, 1]


def test_the_whole_range_of_a_ring_can_be_encoded() -> None:
    ring = Ring(fraction_bits=40, magnitude=2048.0)
    x = np.array([2048.0, -2048.0, np.nextafter(2048.0, 0), 5e-324])
    assert encoded(ring, x).tolist() == [2**51, -(2**51), 2**51, 0]


def test_half_precision_does_not_overflow_on_its_way() -> None:
    ring = Ring(fraction_bits=24, magnitude=65536.0)
    assert encoded(ring, np.array([60000.0], np.float16)).tolist() == [60000 * 2**24]


@given(RINGS, st.integers(1, 100_000))
def test_the_check_is_the_exact_bound(ring: Ring, cohort: int) -> None:
    entry = -(-Fraction(ring.magnitude) * 2**ring.fraction_bits // 1)
    fits = entry * ring.max_weight * cohort < 2**63

    if fits:
        ring.check(cohort)
    else:
        with pytest.raises(RingTooSmall):
            ring.check(cohort)


def test_the_check_holds_at_the_very_border() -> None:
    ring = Ring(fraction_bits=1, magnitude=0.5, max_weight=2**62)
    ring.check(1)
    with pytest.raises(RingTooSmall):
        ring.check(2)


def test_a_magnitude_between_two_entries_counts_as_the_upper_one() -> None:
    """0.75 * 2 = 1.5 may round to 2, so 2 * 2**62 would wrap."""
    with pytest.raises(RingTooSmall):
        Ring(fraction_bits=1, magnitude=0.75, max_weight=2**62).check(1)


def test_the_refusal_tells_by_how_much_and_its_mend_is_enough() -> None:
    ring = Ring(max_weight=2**20)
    with pytest.raises(RingTooSmall, match="lower fraction_bits by 2") as refusal:
        ring.check(3 * 8192)

    assert "2 bits more" in refusal.value.problem
    msgspec.structs.replace(ring, fraction_bits=ring.fraction_bits - 2).check(3 * 8192)
    msgspec.structs.replace(ring, magnitude=ring.magnitude / 4).check(3 * 8192)


@given(RINGS, st.integers(1, 4), st.sampled_from([-1.0, 1.0]))
def test_the_largest_sum_that_the_check_lets_pass_is_right(
    ring: Ring, cohort: int, sign: float
) -> None:
    """Every site at the border with all of its weight, against integers without end."""
    try:
        ring.check(cohort)
    except RingTooSmall:
        reject()
    x = np.array([sign * ring.magnitude])
    sums = {"w": np.zeros(1, np.int64)}

    for _ in range(cohort):
        ring.add(one(x, ring.max_weight), sums)

    entry = round(Fraction(float(x[0])) * 2**ring.fraction_bits)
    assert int(sums["w"][0]) == entry * ring.max_weight * cohort


@pytest.mark.parametrize(
    ("fraction_bits", "magnitude"),
    [(40, 2049.0), (24, float("inf")), (24, float("nan")), (24, 1e300)],
)
def test_a_ring_whose_entries_are_too_long_cannot_be_made(
    fraction_bits: int, magnitude: float
) -> None:
    with pytest.raises(ValueError, match="must not exceed"):
        Ring(fraction_bits=fraction_bits, magnitude=magnitude)


def test_such_a_ring_cannot_come_in_over_a_wire_either() -> None:
    with pytest.raises(msgspec.ValidationError, match="must not exceed"):
        msgspec.json.decode(b'{"magnitude": 1e300}', type=Ring)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf], ids=str)
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_what_is_not_finite_is_refused_wherever_it_hides(
    dtype: type[np.floating], bad: float
) -> None:
    x = np.zeros(TILE + 3, dtype)
    x[-1] = bad
    with pytest.raises(NotFinite, match="site-0001: layer w"):
        encoded(Ring(), x)


@pytest.mark.parametrize("place", [0, TILE, 3 * TILE, -1])
@pytest.mark.parametrize("bad", [np.nan, 65.0])
def test_what_is_refused_leaves_nothing_in_the_sums(bad: float, place: int) -> None:
    x = np.full(5 * TILE + 3, 0.5, np.float32)
    x[place] = bad
    before = np.random.default_rng(1).integers(-(2**62), 2**62, x.size)
    sums = {"w": before.copy()}
    with pytest.raises(UpdateRefused, match="site-0001: layer w"):
        Ring().add(one(x, 977), sums, factor=0.3)
    np.testing.assert_array_equal(sums["w"], before)


@pytest.mark.parametrize("value", [64.00001, -64.00001])
def test_a_value_beyond_the_magnitude_is_refused(value: float) -> None:
    with pytest.raises(OutOfRing, match="beyond 64"):
        encoded(Ring(), np.array([0.0, value], np.float32))


@pytest.mark.parametrize("weight", [0, -1, 11])
def test_a_weight_out_of_range_is_refused(weight: int) -> None:
    with pytest.raises(OutOfRing, match="weight"):
        Ring(max_weight=10).encode(one(np.zeros(1), weight), {"w": (1,)})


@pytest.mark.parametrize(
    "delta",
    [
        {},
        {"v": np.zeros(2)},
        {"w": np.zeros(2), "v": np.zeros(2)},
        {"w": np.zeros(3)},
        {"w": np.zeros((2, 1))},
        {"w": np.zeros(2, np.int64)},
        {"w": np.zeros(2, np.complex64)},
        {"w": np.zeros(2, object)},
        {"w": np.zeros(2, np.longdouble)},
    ],
    ids=["none", "other", "extra", "longer", "deeper", "int", "complex", "object", "longdouble"],
)
def test_other_layers_shapes_and_dtypes_are_refused(delta: dict[str, np.ndarray]) -> None:
    update = ModelUpdate(site="site-0001", round=1, delta=delta, num_examples=1)
    with pytest.raises(Incompatible):
        Ring().encode(update, {"w": (2,)})


def test_arrays_in_another_order_or_byte_order_are_the_same_entries() -> None:
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    expected = encoded(Ring(), x)

    for other in (np.asfortranarray(x), x.astype(">f4"), np.repeat(x, 2, axis=1)[:, ::2]):
        np.testing.assert_array_equal(encoded(Ring(), other), expected)


def test_layers_larger_than_a_tile_are_encoded_whole() -> None:
    x = np.linspace(-1, 1, 2 * TILE + 7, dtype=np.float32)
    np.testing.assert_array_equal(
        encoded(Ring(), x), np.rint(x.astype(np.float64) * 2**24).astype(np.int64)
    )


def test_empty_layers_and_scalars_are_layers_too() -> None:
    assert encoded(Ring(), np.zeros((0, 3))).shape == (0, 3)
    assert encoded(Ring(), np.array(1.0)) == 2**24


@given(arrays(np.float32, 4, elements=st.floats(-64, 64, width=32)))
def test_decoding_an_entry_is_within_half_a_step(x: np.ndarray) -> None:
    back = Ring().decode(encoded(Ring(), x), 1)

    assert back.dtype == np.float64
    assert np.abs(back - x).max() <= 2.0**-25
