"""Who is drawn, how often, and on what a privacy argument may rest."""

from __future__ import annotations

from collections import Counter
from math import comb, sqrt
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from workflows.selection import KINDS, AnySelection, Asked, Drawing, Selection, Uniform
from workflows.selection.over_selection import OverSelection
from workflows.selection.poisson import Poisson
from workflows.selection.power_of_choice import PowerOfChoice
from workflows.selection.round_robin import RoundRobin
from workflows.selection.weighted import Weighted

SITES = tuple(f"site-{k}" for k in range(6))
EXAMPLES = dict(zip(SITES, (1, 2, 3, 4, 10, 20), strict=True))
ROUNDS = 4000


SELECTIONS: dict[str, Selection] = {
    "uniform": Uniform(),
    "poisson": Poisson(),
    "weighted": Weighted(),
    "round-robin": RoundRobin(),
    "over-selection": OverSelection(),
    "power-of-choice": PowerOfChoice(candidates=6),
}


def drawing(**fields: Any) -> Drawing:
    return Drawing(**{"sites": SITES, "size": 3, "round": 1, "seed": 7} | fields)


def times_drawn(selection: AnySelection, **fields: Any) -> Counter[str]:
    """How often each site was drawn."""
    seen: Counter[str] = Counter()
    for round_ in range(1, ROUNDS + 1):
        drawn = selection.draw(drawing(round=round_, num_examples=EXAMPLES, **fields))
        seen.update(drawn.counts or drawn.sites)
    return seen


def is_near(times: int, probability: float, trials: int = ROUNDS) -> bool:
    deviation = sqrt(trials * probability * (1 - probability))
    return abs(times - trials * probability) < 5 * deviation


def test_every_kind_is_known() -> None:
    assert set(KINDS) == set(SELECTIONS)


def test_amplification_may_rest_on_two_kinds_alone() -> None:
    assert {kind for kind, cls in KINDS.items() if cls.amplifies} == {"uniform", "poisson"}


@pytest.mark.parametrize("kind", [kind for kind, cls in KINDS.items() if cls.amplifies])
@given(
    round_=st.integers(1, 1000),
    num_examples=st.dictionaries(st.sampled_from(SITES), st.integers(1, 10**9)),
    last=st.dictionaries(st.sampled_from(SITES), st.integers(1, 999)),
)
def test_where_amplification_rests_neither_data_nor_history_show_in_the_draw(
    kind: str, round_: int, num_examples: dict[str, int], last: dict[str, int]
) -> None:
    selection = SELECTIONS[kind]
    asked = {site: Asked(when, 1) for site, when in last.items()}
    known = drawing(round=round_, num_examples=num_examples, asked=asked)

    drawn = selection.draw(known)

    assert drawn.sites == selection.draw(drawing(round=round_)).sites
    assert (drawn.reserve, drawn.counts) == ((), None)


@pytest.mark.parametrize("kind", KINDS)
@given(
    seed=st.integers(0, 2**53 - 1),
    round_=st.integers(1, 10**5),
    num_sites=st.integers(1, 40),
    share=st.floats(0, 1),
    weight=st.integers(1, 10**6),
)
def test_a_draw_is_of_the_sites_sorted_and_again_the_same(
    kind: str, seed: int, round_: int, num_sites: int, share: float, weight: int
) -> None:
    sites = tuple(f"s{k:02}" for k in range(num_sites))
    size = max(1, round(share * num_sites))
    examples = {site: 1 + (k * weight) % 997 for k, site in enumerate(sites)}
    losses = {site: (k * weight) % 13 / 7 for k, site in enumerate(sites)}
    known = drawing(
        sites=sites, size=size, round=round_, seed=seed, num_examples=examples, losses=losses
    )
    selection = SELECTIONS[kind]

    drawn = selection.draw(known)

    again = selection.draw(known)
    assert (drawn.sites, drawn.reserve, drawn.counts) == (again.sites, again.reserve, again.counts)
    assert list(drawn.sites) == sorted(set(drawn.sites))
    called = (*drawn.sites, *drawn.reserve)
    assert len(set(called)) == len(called)
    assert set(called) <= set(sites)
    assert len(drawn.sites) <= selection.most(size, num_sites) <= num_sites
    if kind not in ("poisson", "weighted"):
        assert len(drawn.sites) == size
    if drawn.counts is not None:
        assert drawn.counts.keys() == set(drawn.sites)
        assert sum(drawn.counts.values()) == size


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_survives_the_wire(kind: str) -> None:
    selection = SELECTIONS[kind]
    wire = msgspec.json.encode(selection)

    assert msgspec.json.decode(wire, type=AnySelection) == selection
    assert msgspec.json.decode(wire)["kind"] == kind


def test_uniform_takes_every_set_as_often() -> None:
    seen = Counter(Uniform().draw(drawing(round=r)).sites for r in range(1, ROUNDS + 1))

    assert len(seen) == comb(6, 3)
    assert all(is_near(times, 1 / 20) for times in seen.values())


def test_uniform_draws_what_it_drew_before_there_were_other_kinds() -> None:
    """The cohort of round 2 of a job with seed 7, three of six."""
    rng = np.random.default_rng(4914902556716214474)  # derive(7, "cohort", 2)
    expected = sorted(SITES[k] for k in rng.choice(6, 3, replace=False))

    assert list(Uniform().draw(drawing(round=2)).sites) == expected


def test_poisson_takes_sites_one_by_one() -> None:
    cohorts = [Poisson().draw(drawing(size=2, round=r)).sites for r in range(1, ROUNDS + 1)]

    third = 1 / 3
    for one in SITES:
        assert is_near(sum(one in cohort for cohort in cohorts), third)
        for other in SITES:
            if other != one:
                both = sum(one in cohort and other in cohort for cohort in cohorts)
                assert is_near(both, third * third)
    sizes = Counter(len(cohort) for cohort in cohorts)
    for size in range(7):
        binomial = comb(6, size) * third**size * (1 - third) ** (6 - size)
        assert is_near(sizes[size], binomial)


def test_poisson_of_all_sites_takes_all() -> None:
    assert Poisson().draw(drawing(size=6)).sites == SITES


def test_the_ring_must_hold_all_sites_of_a_poisson_draw() -> None:
    assert {kind: selection.most(3, 6) for kind, selection in SELECTIONS.items()} == {
        "uniform": 3,
        "poisson": 6,
        "weighted": 3,
        "round-robin": 3,
        "over-selection": 3,
        "power-of-choice": 3,
    }


def test_weighted_draws_by_examples_so_that_the_mean_is_unbiased() -> None:
    """E[counts / size] is each site's share of all examples (Li et al., Scheme I)."""
    seen = times_drawn(Weighted())

    for site, examples in EXAMPLES.items():
        assert is_near(seen[site], examples / 40, 3 * ROUNDS)


@given(num_sites=st.integers(1, 20), share=st.floats(0, 1), seed=st.integers(0, 99))
def test_sites_take_turns(num_sites: int, share: float, seed: int) -> None:
    sites = tuple(f"s{k:02}" for k in range(num_sites))
    size = max(1, round(share * num_sites))
    asked = dict.fromkeys(sites, Asked())
    for round_ in range(1, 30):
        known = drawing(sites=sites, size=size, round=round_, seed=seed, asked=asked)
        asked |= {site: asked[site].again(round_) for site in RoundRobin().draw(known).sites}
        times = [one.times for one in asked.values()]
        assert max(times) - min(times) <= 1
        assert sum(times) == round_ * size


def test_who_waited_longest_is_first_among_those_that_are_there() -> None:
    asked = {site: Asked(k, 1) for k, site in enumerate(SITES, start=1)}
    everywhere = RoundRobin()
    seldom = RoundRobin(availability=0.5)

    assert everywhere.draw(drawing(round=9, asked=asked)).sites == SITES[:3]
    for round_ in range(10, 60):
        there = seldom.draw(drawing(size=6, round=round_, asked=asked)).sites
        assert seldom.draw(drawing(size=2, round=round_, asked=asked)).sites == there[:2]
    times = sum(len(seldom.draw(drawing(size=6, round=r)).sites) for r in range(1, ROUNDS + 1))
    assert is_near(times, 0.5, 6 * ROUNDS)


def test_the_first_to_answer_are_those_with_the_least_to_do() -> None:
    everyone = OverSelection(factor=2, sigma=0)

    drawn = everyone.draw(drawing(num_examples=EXAMPLES))

    assert drawn.sites == SITES[:3]
    assert drawn.reserve == SITES[3:]


def test_sites_of_equal_delay_come_in_the_order_of_their_names() -> None:
    drawn = OverSelection(factor=2, sigma=0).draw(drawing(num_examples=dict.fromkeys(SITES, 5)))

    assert (*drawn.sites, *drawn.reserve) == SITES


def test_virtual_delays_are_log_normal() -> None:
    """Of two sites, the one with e times the work is first when its delay happens to be less."""
    sites, examples = ("fast", "slow"), {"fast": 1000, "slow": 2718}
    selection = OverSelection(factor=2, sigma=1)

    first = Counter(
        selection.draw(drawing(sites=sites, size=1, round=r, num_examples=examples)).sites
        for r in range(1, ROUNDS + 1)
    )

    assert is_near(first[("slow",)], 0.2398)  # Phi(-1 / sqrt(2))


@pytest.mark.parametrize(
    ("factor", "size", "called"), [(1, 3, 3), (1.1, 3, 4), (1.3, 3, 4), (100, 3, 6), (1.1, 10, 11)]
)
def test_so_many_are_called(factor: float, size: int, called: int) -> None:
    sites = SITES if size == 3 else tuple(f"site-{k:02}" for k in range(20))

    drawn = OverSelection(factor=factor).draw(drawing(sites=sites, size=size))

    assert len(drawn.sites) + len(drawn.reserve) == called


def test_with_all_sites_there_is_nothing_to_select_over() -> None:
    misfit = OverSelection().misfit(None, 6)

    assert OverSelection().misfit(6, 6) is None
    assert misfit
    assert misfit.fields == ("size", "selection.kind")


def test_the_power_of_choice_calls_by_examples_and_takes_the_worst() -> None:
    """Of two called without replacement, by the chain rule over the order in which they came."""
    shares = [examples / 40 for examples in EXAMPLES.values()]
    selection = PowerOfChoice(candidates=2)

    called = Counter(
        site
        for r in range(1, ROUNDS + 1)
        for site in selection.called(drawing(size=1, round=r, num_examples=EXAMPLES))
    )

    for k, site in enumerate(SITES):
        second = sum(p * shares[k] / (1 - p) for j, p in enumerate(shares) if j != k)
        assert is_near(called[site], shares[k] + second)
    losses = {SITES[1]: 0.5, SITES[3]: 2.0, SITES[4]: 2.0, SITES[5]: 1.0}
    drawn = PowerOfChoice(candidates=4).draw(drawing(size=2, losses=losses))
    assert (drawn.sites, drawn.counts) == ((SITES[3], SITES[4]), {SITES[3]: 1, SITES[4]: 1})
    drawn = PowerOfChoice(candidates=4).draw(drawing(size=1, losses=losses))
    assert drawn.sites == (SITES[3],)


@pytest.mark.parametrize(
    ("candidates", "size", "fields"),
    [
        (3, None, ("size", "selection.candidates")),
        (2, 3, ("selection.candidates", "size")),
        (7, 3, ("selection.candidates", "size")),
        (3, 3, None),
        (6, 3, None),
    ],
)
def test_candidates_are_between_the_cohort_and_all_sites(
    candidates: int, size: int | None, fields: tuple[str, ...] | None
) -> None:
    misfit = PowerOfChoice(candidates=candidates).misfit(size, 6)

    assert (misfit and misfit.fields) == fields
