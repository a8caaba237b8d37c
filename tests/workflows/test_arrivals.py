"""Who answers when, in virtual time."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from workflows.arrivals import Arrival, SitesAtWork, VirtualTime

SITES = tuple(f"site-{k:04}" for k in range(20))
Round = tuple[list[Arrival], list[Arrival], float, set[int]]


def course(rounds: int, buffer: int, most: int, **fields: Any) -> list[Round]:
    """Of each round the answers, those given up, the time, and of which rounds sites are left."""
    sites = fields.pop("sites", SITES)
    seed = fields.pop("seed", 7)
    at_work = SitesAtWork(VirtualTime(**fields), seed, sites, most)
    found = []
    for _ in range(rounds):
        arrived = at_work.arrive(buffer)
        found.append((arrived, at_work.step(), at_work.time, at_work.rounds))
    return found


def test_it_follows_from_the_seed() -> None:
    assert course(30, 3, 6) == course(30, 3, 6)
    assert course(30, 3, 6) != course(30, 3, 6, seed=8)


def test_delays_that_are_all_the_same_make_one_wave_after_another() -> None:
    """Six at work, three to a step: each answer is to the model of two steps before."""
    found = course(8, 3, 6, sigma=0)

    assert [time for _, _, time, _ in found] == [1, 1, 2, 2, 3, 3, 4, 4]
    asked = [[one.asked for one in arrived] for arrived, _, _, _ in found]
    assert asked[0] == [1, 1, 1]
    for k, rounds in enumerate(asked[2:], start=3):
        assert set(rounds) <= {k - 2, k - 1}


@given(
    buffer=st.integers(1, 8),
    most=st.integers(1, 12),
    num_sites=st.integers(12, 20),
    sigma=st.floats(0, 3),
    max_staleness=st.integers(0, 5),
)
def test_what_holds_of_every_course(
    buffer: int, most: int, num_sites: int, sigma: float, max_staleness: int
) -> None:
    sites = SITES[:num_sites]
    found = course(25, buffer, most, sites=sites, sigma=sigma, max_staleness=max_staleness)

    seen: set[Arrival] = set()
    before = 0.0
    for number, (arrived, late, time, rounds) in enumerate(found, start=1):
        gone = [*arrived, *late]
        assert len(arrived) == buffer
        assert len({one.site for one in gone}) == len(gone)
        assert not seen & set(gone)
        assert all(0 <= number - one.asked <= max_staleness for one in arrived)
        assert all(number + 1 - one.asked == max_staleness + 1 for one in late)
        assert all(number - max_staleness < asked <= number for asked in rounds)
        assert len(rounds) <= min(most, max_staleness)
        assert time >= before
        seen |= set(gone)
        before = time


@given(st.lists(st.integers(1, 4), min_size=1, max_size=6))
def test_it_does_not_matter_in_how_many_parts_a_buffer_is_filled(parts: list[int]) -> None:
    """An answer that is lost makes the next one come for its place."""
    whole, split = (SitesAtWork(VirtualTime(sigma=1), 1, SITES, 5) for _ in range(2))

    for _ in range(3):
        at_once = whole.arrive(sum(parts))
        assert [one for n in parts for one in split.arrive(n)] == at_once
        assert split.step() == whole.step()
    assert split.time == whole.time


def test_more_answers_than_sites_do_not_come() -> None:
    at_work = SitesAtWork(VirtualTime(), 1, SITES[:4], 2)

    assert len(at_work.arrive(10)) == 4
    assert at_work.arrive(1) == []
    at_work.step()
    assert len(at_work.arrive(10)) == 4


def test_sites_that_were_given_up_come_again() -> None:
    found = course(60, 2, 6, sites=SITES[:8], sigma=2, max_staleness=1)

    last = {one.site: number for number, (_, late, *_) in enumerate(found[:40]) for one in late}
    assert last
    for site, number in last.items():
        later = [one.site for arrived, late, *_ in found[number + 1 :] for one in [*arrived, *late]]
        assert site in later


def test_all_sites_may_be_at_work_at_once() -> None:
    found = course(40, 1, 4, sites=SITES[:4], sigma=1)

    assert {one.site for arrived, *_ in found for one in arrived} == set(SITES[:4])


def test_every_site_comes_as_often_as_any_other_in_the_long_run() -> None:
    """Delays are drawn anew each time, so no site is slow for good."""
    found = course(2000, 4, 8, sigma=1)

    times = Counter(one.site for arrived, *_ in found for one in arrived)
    assert set(times) == set(SITES)
    assert max(times.values()) - min(times.values()) < 120  # of 400; sites wait their turn


@pytest.mark.parametrize("sigma", [0.5, 1.0])
def test_delays_are_log_normal_of_median_1(sigma: float) -> None:
    """One site alone: the times between its answers are its delays."""
    times = np.array([0, *(time for _, _, time, _ in course(4000, 1, 1, sigma=sigma))])

    logs = np.log(np.diff(times))
    assert np.mean(logs) == pytest.approx(0, abs=4 * sigma / 4000**0.5)
    assert np.std(logs) == pytest.approx(sigma, rel=0.05)


def test_a_site_sees_the_answers_of_the_others_while_it_trains() -> None:
    """C - 1 on average, so (C - 1) / K steps."""
    found = course(3000, 2, 8, sigma=0.5)

    staleness = [
        number - one.asked
        for number, (arrived, *_) in enumerate(found, start=1)
        if number > 50
        for one in arrived
    ]
    assert np.mean(staleness) == pytest.approx((8 - 1) / 2, abs=0.1)
