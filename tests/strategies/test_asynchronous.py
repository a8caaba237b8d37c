"""FedBuff and FedAsync against their sources, in plain floats."""

from __future__ import annotations

import math
from dataclasses import replace

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from strategies import (
    KINDS,
    AnyStrategy,
    FedAvg,
    Incompatible,
    ModelUpdate,
    ServerState,
    Strategy,
    digest_of_fold,
)
from strategies.asynchronous import Asynchronous
from strategies.fedasync import FedAsync
from strategies.fedbuff import FedBuff
from strategies.staleness import AnyStaleness, Constant, Hinge, Polynomial
from tests.strategies.cohorts import RING

ROUND = 9  # whose buffer is filled: the state below is after eight
ANSWERS = st.lists(
    st.tuples(st.floats(-8, 8, width=32), st.integers(1, ROUND), st.integers(1, 1000)),
    min_size=1,
    max_size=6,
)


def state(x: float, dtype: type[np.floating[object]] = np.float64) -> ServerState:
    return ServerState({"w": np.array(x, dtype)}, round=ROUND - 1)


def answers(drawn: list[tuple[float, int, int]]) -> list[ModelUpdate]:
    return [
        ModelUpdate(f"site-{k}", asked, {"w": np.array(delta, np.float32)}, n)
        for k, (delta, asked, n) in enumerate(drawn)
    ]


def stepped(strategy: Strategy, before: ServerState, updates: list[ModelUpdate]) -> float:
    partial = strategy.zero(before)
    for update in updates:
        strategy.accumulate(partial, update, RING)
    return float(strategy.advance(before, partial, RING).params["w"])


@pytest.mark.parametrize(
    ("function", "weights"),
    [
        (Constant(), [1, 1, 1, 1, 1, 1, 1]),
        (Polynomial(), [1, 2**-0.5, 3**-0.5, 0.5, 5**-0.5, 6**-0.5, 7**-0.5]),
        (Polynomial(a=1), [1, 1 / 2, 1 / 3, 1 / 4, 1 / 5, 1 / 6, 1 / 7]),
        (Hinge(), [1, 1, 1, 1, 1, 1 / 11, 1 / 21]),
        (Hinge(a=0.5, b=2), [1, 1, 1, 1 / 1.5, 1 / 2, 1 / 2.5, 1 / 3]),
    ],
)
def test_what_an_answer_counts_for(function: AnyStaleness, weights: list[float]) -> None:
    assert [function.weight(n) for n in range(7)] == pytest.approx(weights)


@given(
    st.one_of(
        st.just(Constant()),
        st.builds(Polynomial, a=st.floats(0, 100)),
        st.builds(Hinge, a=st.floats(0, 1e6), b=st.integers(0, 20)),
    ),
    st.integers(0, 10_000),
)
def test_no_weight_is_above_one_or_rises(function: AnyStaleness, staleness: int) -> None:
    assert function.weight(0) == 1
    assert 0 <= function.weight(staleness + 1) <= function.weight(staleness) <= 1


@given(ANSWERS, st.floats(-4, 4), st.sampled_from([0.5, 1.0, 2.0]))
def test_fedbuff_is_algorithm_1(drawn: list[tuple[float, int, int]], x: float, eta: float) -> None:
    """The sum of s(staleness) * Delta_i over K answers, divided by K, times eta_g."""
    total = sum(delta / math.sqrt(1 + (ROUND - asked)) for delta, asked, _ in drawn)
    expected = x + eta * total / len(drawn)

    found = stepped(FedBuff(buffer=len(drawn), eta=eta), state(x), answers(drawn))

    assert found == pytest.approx(expected, abs=eta * 2**-24)


def test_a_stale_buffer_makes_a_shorter_step() -> None:
    fresh, stale = ([(1.0, asked, 1)] * 2 for asked in (ROUND, ROUND - 3))

    steps = [stepped(FedBuff(buffer=2), state(0.0), answers(drawn)) for drawn in (fresh, stale)]

    assert steps == [1.0, 0.5]


def test_a_buffer_of_fresh_answers_steps_as_fedavg_does_where_sites_hold_the_same() -> None:
    fresh = answers([(0.5, ROUND, 7), (-2.0, ROUND, 7), (1.25, ROUND, 7)])

    assert stepped(FedBuff(), state(1.0), fresh) == stepped(FedAvg(), state(1.0), fresh)


@given(
    delta=st.floats(-8, 8, width=32),
    asked=st.integers(1, ROUND),
    x=st.floats(-4, 4),
    x_tau=st.floats(-4, 4),
    alpha=st.floats(0.01, 1),
    function=st.sampled_from([Constant(), Polynomial(), Hinge(a=1, b=2)]),
)
def test_fedasync_is_algorithm_1(
    delta: float, asked: int, x: float, x_tau: float, alpha: float, function: AnyStaleness
) -> None:
    """x_t = (1 - alpha_t) * x_{t-1} + alpha_t * x_new, with x_new = x_tau + delta."""
    if asked == ROUND:
        x_tau = x
    alpha_t = alpha * function.weight(ROUND - asked)
    expected = (1 - alpha_t) * x + alpha_t * (x_tau + delta)

    strategy = FedAsync(alpha=alpha, staleness=function)
    blended = strategy.blend(state(x), [({"w": np.array(x_tau)}, ROUND - asked)])
    found = stepped(strategy, blended, answers([(delta, asked, 3)]))

    assert found == pytest.approx(expected, abs=2**-24)


def test_an_answer_to_the_model_in_force_is_mixed_in_by_alpha_alone() -> None:
    strategy, before = FedAsync(alpha=0.25), state(2.0)

    blended = strategy.blend(before, [(before.params, 0)])

    assert stepped(strategy, blended, answers([(4.0, ROUND, 1)])) == 3.0


def test_blending_keeps_the_models_dtype_and_writes_into_nothing() -> None:
    before, start = state(1.0, np.float32), {"w": np.array(3.0, np.float32)}

    after = FedAsync(alpha=0.5, staleness=Constant()).blend(before, [(start, 2)])

    assert (after.params["w"].dtype, after.round) == (np.float32, before.round)
    assert [float(x["w"]) for x in (after.params, before.params, start)] == [2.0, 1.0, 3.0]


@pytest.mark.parametrize("strategy", [FedAvg(), FedBuff()], ids=["synchronous", "fedbuff"])
def test_other_strategies_step_from_the_model_in_force(strategy: Strategy) -> None:
    before = state(1.0)

    assert strategy.blend(before, [({"w": np.array(5.0)}, 3)]) is before


@given(ANSWERS, st.randoms(), st.integers(0, 6))
def test_neither_order_nor_shards_show(
    drawn: list[tuple[float, int, int]], random: object, cut: int
) -> None:
    strategy, before, updates = FedBuff(), state(0.0), answers(drawn)
    whole, left, right = (strategy.zero(before) for _ in range(3))
    for update in updates:
        strategy.accumulate(whole, update, RING)
    random.shuffle(updates)  # type: ignore[attr-defined]
    for k, update in enumerate(updates):
        strategy.accumulate(left if k < cut else right, update, RING)

    assert digest_of_fold(strategy.merge(right, left)) == digest_of_fold(whole)


@pytest.mark.parametrize("examples", [1, 1000])
def test_every_answer_counts_once_whatever_is_behind_it(examples: int) -> None:
    drawn = [(1.0, ROUND, examples), (0.0, ROUND, 1)]

    assert stepped(FedBuff(), state(0.0), answers(drawn)) == 0.5


@pytest.mark.parametrize("strategy", [FedBuff(), FedAsync()], ids=["fedbuff", "fedasync"])
@pytest.mark.parametrize(("asked", "told"), [(ROUND + 1, "round 10 came in round 9"), (0, "0")])
def test_an_answer_to_no_question_so_far_is_refused(
    strategy: Strategy, asked: int, told: str
) -> None:
    (update,) = answers([(1.0, ROUND, 1)])
    partial = strategy.zero(state(0.0))

    with pytest.raises(Incompatible, match=told):
        strategy.accumulate(partial, replace(update, round=asked), RING)
    assert not partial.sites


def test_a_second_answer_in_a_round_is_refused_whichever_question_it_is_to() -> None:
    strategy = FedBuff()
    first, second = answers([(1.0, ROUND, 1), (1.0, ROUND - 2, 1)])
    partial = strategy.accumulate(strategy.zero(state(0.0)), first, RING)

    with pytest.raises(Incompatible, match="second update"):
        strategy.accumulate(partial, replace(second, site=first.site), RING)


def test_a_strategy_that_waits_for_its_cohort_refuses_what_is_stale() -> None:
    with pytest.raises(Incompatible, match="update of round 7 came in round 9"):
        stepped(FedAvg(), state(0.0), answers([(1.0, 7, 1)]))


@given(
    st.integers(1, ROUND),
    st.floats(0.125, 64, width=32),
    st.sampled_from([FedBuff(), FedAsync(), FedBuff(staleness=Constant())]),
)
def test_no_site_changes_the_sum_by_more_than_the_sensitivity(
    asked: int, norm: float, strategy: Asynchronous
) -> None:
    partial = strategy.zero(state(0.0))

    strategy.accumulate(partial, answers([(norm, asked, 1000)])[0], RING)

    assert abs(int(partial.sums["w"])) / RING.scale <= (
        strategy.sensitivity(norm, 1000).parts["delta"] + 2**-24
    )


def test_asynchronous_strategies_offer_nothing_but_the_model_and_sites_keep_nothing() -> None:
    asynchronous = {tag: kind() for tag, kind in KINDS.items() if kind().buffered}

    assert asynchronous.keys() == {"fedasync", "fedbuff"}
    for strategy in asynchronous.values():
        assert (strategy.has_memory, strategy.vectors, strategy.sums) == (False, (), ())
        assert strategy.offer(state(1.0)) == state(1.0).params
    assert [FedBuff(buffer=3).buffered, FedAsync().buffered] == [3, 1]


def test_fedasyncs_sites_are_held_near_the_model_that_they_were_given() -> None:
    assert FedAsync(rho=0.25).client_half().proximal_mu == 0.25
    assert not FedAsync(rho=0).client_half().reaches_in


@pytest.mark.parametrize(
    ("text", "strategy"),
    [
        ('{"kind": "fedbuff", "buffer": 4}', FedBuff(buffer=4, eta=1, staleness=Polynomial(a=0.5))),
        (
            '{"kind": "fedasync", "staleness": {"kind": "hinge", "b": 2}}',
            FedAsync(alpha=0.6, rho=0.005, staleness=Hinge(a=10, b=2)),
        ),
        (
            '{"kind": "fedbuff", "staleness": {"kind": "constant"}}',
            FedBuff(buffer=10, staleness=Constant()),
        ),
    ],
)
def test_a_document_becomes_a_strategy(text: str, strategy: Strategy) -> None:
    assert msgspec.json.decode(text, type=AnyStrategy) == strategy


@pytest.mark.parametrize(
    "text",
    [
        '{"kind": "fedbuff", "buffer": 0}',
        '{"kind": "fedasync", "alpha": 1.5}',
        '{"kind": "fedasync", "staleness": {"kind": "linear"}}',
        '{"kind": "fedasync", "staleness": {"kind": "polynomial", "a": -1}}',
        '{"kind": "fedasync", "buffer": 3}',
    ],
)
def test_what_is_no_strategy_is_refused(text: str) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(text, type=AnyStrategy)
