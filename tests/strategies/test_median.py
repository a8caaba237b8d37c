"""The coordinate-wise median: its definition, and what a minority can do to it."""

from __future__ import annotations

import statistics

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from strategies import ModelUpdate
from strategies.median import CoordinateMedian
from tests.strategies.cohorts import RING, float32s, fold, scalar, scalars, updates

SCALAR = {"w": np.zeros((), np.float32)}
MEDIAN = CoordinateMedian()


def of(cohort: list[ModelUpdate]) -> float:
    return float(MEDIAN.finish(fold(cohort, MEDIAN, SCALAR), RING)["w"])


@given(updates(fewest=3))
def test_it_is_the_median_of_every_coordinate(cohort: list[ModelUpdate]) -> None:
    """Yin et al. 2018, Definition 1, of the values that the ring holds."""
    median = MEDIAN.finish(fold(cohort, MEDIAN), RING)

    for name, x in median.items():
        assert x.dtype == np.float64
        for i in range(x.size):
            column = [round(float(u.delta[name].flat[i]) * 2**24) / 2**24 for u in cohort]
            assert x.flat[i] == statistics.median(column)


def test_an_even_cohort_gives_the_mean_of_the_middle_two() -> None:
    assert of(scalars(1.0, 2.0, 3.5, 50.0)) == 2.75


@given(st.lists(float32s(1), min_size=3, max_size=5), st.data())
def test_a_minority_cannot_leave_the_range_of_the_others(
    honest: list[float], data: st.DataObject
) -> None:
    liars = data.draw(st.lists(float32s(64), max_size=len(honest) - 1))
    median = of(scalars(*honest, *liars))

    assert min(honest) - 2.0**-24 <= median <= max(honest) + 2.0**-24


def test_a_site_counts_once_whatever_it_claims() -> None:
    cohort = [scalar("a", 0.0, 1), scalar("b", 1.0, 1), scalar("c", 9.0, RING.max_weight)]
    assert of(cohort) == 1.0


def test_layers_larger_than_a_tile_are_taken_whole() -> None:
    size = (1 << 18) + 5
    rows = np.random.default_rng(5).uniform(-1, 1, (5, size)).astype(np.float32)
    cohort = [ModelUpdate(f"s{i}", 1, {"w": row}, 1) for i, row in enumerate(rows)]

    median = MEDIAN.finish(fold(cohort, MEDIAN, {"w": np.zeros(size)}), RING)["w"]

    np.testing.assert_allclose(median, np.median(rows, axis=0), atol=2.0**-24)


def test_the_model_moves_by_the_median() -> None:
    state = CoordinateMedian(eta=0.5).step(MEDIAN.init({"w": np.ones(1)}), {"w": np.full(1, 2.0)})
    assert pytest.approx(2.0) == state.params["w"].item()
