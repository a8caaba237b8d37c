"""The tally adds what sites answer, each once, to what was counted before."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from strategies import ModelUpdate, OutOfRing, Ring, ServerState
from strategies.tally import Tally
from tests.strategies.cohorts import MODEL, RING, fold, scalar, scalars, updates

COUNTS = st.lists(st.integers(0, 2**40), min_size=1, max_size=6)


@given(COUNTS, st.integers(0, 2**40))
def test_whole_numbers_are_added_up_exactly(counts: list[int], before: int) -> None:
    ring = Ring(fraction_bits=1, magnitude=2.0**40, max_weight=1)
    state = ServerState({"n": np.array(float(before))})
    answers = [ModelUpdate(f"s{k}", 1, {"n": np.array(float(n))}, 1) for k, n in enumerate(counts)]

    after = Tally().advance(state, fold(answers, Tally(), state.params, ring), ring)

    assert int(after.params["n"]) == before + sum(counts)
    assert after.round == 1


@given(updates())
def test_the_sum_is_that_of_what_the_ring_holds(cohort: list[ModelUpdate]) -> None:
    total = Tally().finish(fold(cohort, Tally()), RING)

    for name in MODEL:
        exact = sum(Fraction(round(float(u.delta[name].flat[0]) * 2**24), 2**24) for u in cohort)
        assert Fraction(float(total[name].flat[0])) == exact


@given(updates(), st.data())
def test_neither_order_nor_a_claimed_weight_shows(
    cohort: list[ModelUpdate], data: st.DataObject
) -> None:
    shuffled = data.draw(st.permutations(cohort))
    weightless = [replace(update, num_examples=1) for update in shuffled]

    left, right = (Tally().finish(fold(part, Tally()), RING) for part in (cohort, weightless))

    assert all(np.array_equal(left[name], right[name]) for name in MODEL)


@given(st.floats(-64, 64), st.floats(-64, 64))
def test_two_shards_add_up_to_the_whole(a: float, b: float) -> None:
    model = {"w": np.zeros(())}
    one, other = fold([scalar("a", a)], Tally(), model), fold([scalar("b", b)], Tally(), model)
    whole = fold([scalar("b", b), scalar("a", a)], Tally(), model)

    merged = Tally().merge(one, other)

    assert np.array_equal(merged.sums["w"], whole.sums["w"])


def test_a_site_that_answers_more_than_there_is_is_refused() -> None:
    with pytest.raises(OutOfRing, match="beyond 64"):
        fold(scalars(1.0, 65.0), Tally(), {"w": np.zeros((), np.float32)})


def test_what_one_site_changes_is_what_it_answers() -> None:
    stated = Tally().sensitivity(clip_norm=3.0, max_weight=100)
    assert (stated.of, stated.parts["delta"]) == ("sum", 3.0)
