"""FedNova and q-FedAvg against their sources, in plain floats."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord
from flwr.serverapp import strategy as flower
from hypothesis import given
from hypothesis import strategies as st

from strategies import FedAvg, Incompatible, ModelUpdate, NotFinite, OutOfRing, Ring, Strategy
from strategies.fednova import MOST, FedNova, normaliser
from strategies.qfedavg import QFedAvg
from tests.strategies.cohorts import RING, fold, scalar

SCALAR = {"w": np.zeros(())}
SITES = st.lists(
    st.tuples(
        st.floats(-8, 8, width=32), st.integers(1, 1000), st.integers(1, 500), st.floats(0.01, 6)
    ),
    min_size=1,
    max_size=6,
)
Drawn = list[tuple[float, int, int, float]]


def told(k: int, value: float, n: int, **scalars: float) -> ModelUpdate:
    return replace(scalar(f"site-{k:04}", value, n), scalars=scalars)


def moved(strategy: Strategy, updates: list[ModelUpdate], ring: Ring = RING) -> float:
    partial = fold(updates, strategy, SCALAR, ring)
    return float(strategy.finish(partial, ring)["w"])


@given(steps=st.integers(1, 200), momentum=st.floats(0, 0.95))
def test_the_normaliser_is_what_momentum_makes_of_constant_gradients(
    steps: int, momentum: float
) -> None:
    """Gradients of 1 at a rate of 1 move the model by the sum of their weights, ||a_i||_1."""
    velocity = position = 0.0
    for _ in range(steps):
        velocity = momentum * velocity + 1.0
        position += velocity

    assert normaliser(steps, momentum) == pytest.approx(position)
    assert normaliser(steps) == steps


@given(SITES)
def test_fednova_is_equation_4(sites: Drawn) -> None:
    total = sum(n for _, n, _, _ in sites)
    tau_eff = sum(n / total * a for _, n, a, _ in sites)
    expected = tau_eff * sum(n / total * delta / a for delta, n, a, _ in sites)

    updates = [told(k, d, n, normaliser=a) for k, (d, n, a, _) in enumerate(sites)]

    assert moved(FedNova(), updates) == pytest.approx(expected, abs=2**-24 * tau_eff)


@given(SITES, st.integers(1, 100))
def test_fednova_of_equally_many_steps_is_fedavg(sites: Drawn, steps: int) -> None:
    updates = [told(k, d, n, normaliser=steps) for k, (d, n, _, _) in enumerate(sites)]

    assert moved(FedNova(), updates) == pytest.approx(moved(FedAvg(), updates), abs=2**-23 * steps)


@given(SITES, st.sampled_from([0.0, 0.5, 1.0, 2.0]), st.sampled_from([1.0, 0.1]))
def test_qfedavg_is_algorithm_2(sites: Drawn, q: float, scale: float) -> None:
    lipschitz = 5.0
    numerator = denominator = 0.0
    for delta, n, _, loss in sites:
        gradient = lipschitz * -delta
        numerator += n * loss**q * gradient
        denominator += n * (q * loss ** (q - 1) * gradient**2 + lipschitz * loss**q)

    ring = Ring(fraction_bits=32, magnitude=2.0**16, max_weight=1000)
    updates = [told(k, d, n, loss_before=f) for k, (d, n, _, f) in enumerate(sites)]
    strategy = QFedAvg(q=q, lipschitz=lipschitz, loss_scale=scale)

    try:
        found = moved(strategy, updates, ring)
    except OutOfRing as refused:
        assert "h is" in refused.reason  # noqa: PT017 - large losses at a small scale
    else:
        assert found == pytest.approx(-numerator / denominator, rel=1e-3, abs=1e-3)


@given(SITES)
def test_qfedavg_of_no_fairness_is_fedavg(sites: Drawn) -> None:
    updates = [told(k, d, n, loss_before=f) for k, (d, n, _, f) in enumerate(sites)]

    assert moved(QFedAvg(q=0.0), updates) == pytest.approx(moved(FedAvg(), updates), abs=1e-12)


def test_qfedavg_agrees_with_flower_where_sites_have_equally_many_examples() -> None:
    """Flower counts every client once, and adds 1e-10 to a loss where we take it as the least."""
    rng = np.random.default_rng(3)
    params = {"w": rng.normal(size=(4, 3)).astype(np.float32)}
    updates = [
        ModelUpdate(f"s{k}", 1, {"w": rng.normal(0, 0.1, (4, 3)).astype(np.float32)}, 7,
                    {"loss_before": float(loss)})
        for k, loss in enumerate(rng.uniform(0.2, 3, 5))
    ]  # fmt: skip
    theirs = flower.QFedAvg(client_learning_rate=0.1, q=1.5)
    theirs.current_arrays = ArrayRecord({"w": Array(params["w"])})
    arrays, _ = theirs.aggregate_train(1, replies_with_losses(params, updates))
    assert arrays is not None

    ours = QFedAvg(q=1.5, lipschitz=10.0)
    state = ours.init(params)
    partial = fold(updates, ours, params)
    after = ours.step(state, ours.finish(partial, RING))

    np.testing.assert_allclose(after.params["w"], arrays["w"].numpy(), rtol=0, atol=2e-6)


def replies_with_losses(params: dict[str, np.ndarray], updates: list[ModelUpdate]) -> list[object]:
    from tests.strategies.test_against_flower import replies

    messages = replies(params, updates)
    for message, update in zip(messages, updates, strict=True):
        message.content["metrics"]["train_loss"] = update.scalars["loss_before"]
    return list(messages)


@pytest.mark.parametrize(
    ("strategy", "scalars", "error", "words"),
    [
        (FedNova(), {}, Incompatible, "does not tell its normaliser"),
        (FedNova(), {"normaliser": math.nan}, NotFinite, "normaliser is nan"),
        (FedNova(), {"normaliser": 0.5}, OutOfRing, "below 1"),
        (FedNova(), {"normaliser": 1e6}, OutOfRing, "beyond 65536"),
        (QFedAvg(), {}, Incompatible, "does not tell its loss_before"),
        (QFedAvg(), {"loss_before": math.inf}, NotFinite, "loss_before is inf"),
        (QFedAvg(), {"loss_before": -1.0}, OutOfRing, "no power"),
    ],
)
def test_a_site_that_tells_no_usable_number_is_refused_by_name(
    strategy: Strategy, scalars: dict[str, float], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=f"site-0001: .*{words}"):
        fold([told(1, 1.0, 5, **scalars)], strategy, SCALAR)


@given(SITES, st.floats(0.5, 8, width=32))
def test_no_site_changes_a_sum_by_more_than_the_stated_sensitivity(
    sites: Drawn, clip: float
) -> None:
    ring = Ring(magnitude=2.0**14, max_weight=1000)
    for strategy in (FedNova(), QFedAvg(q=0.5), QFedAvg(q=1.0)):
        bounds = strategy.sensitivity(clip, 1000).parts
        for delta, n, a, loss in sites:
            one = told(1, min(max(delta, -clip), clip), n, normaliser=a, loss_before=loss)
            try:
                folded = strategy.contribution(one, ring)
            except OutOfRing:
                continue  # nothing of it reaches the sum
            assert n * abs(float(folded.delta["w"])) <= bounds["delta"] * (1 + 1e-12)
            (name,) = strategy.sums
            number = float(folded.delta[f"scalars/{name}"])
            assert n * number * MOST / ring.magnitude <= bounds[name] * (1 + 1e-12)


def test_what_a_site_folds_stays_within_what_the_ring_was_proved_for() -> None:
    """At the largest values of all, the sums of the largest cohort still do not wrap."""
    ring = Ring(fraction_bits=24, magnitude=64.0, max_weight=1 << 20)
    cohort = next(n for n in range(1, 1 << 20) if (64 << 24) * (1 << 20) * (n + 1) >= 1 << 63)
    ring.check(cohort)
    update = told(1, 64.0, 1 << 20, normaliser=MOST)
    one = fold([update], FedNova(), SCALAR, ring).sums

    for total in one.values():
        assert 0 < int(total) * cohort < 1 << 63
    assert int(one["scalars/normaliser"]) == (64 << 24) * (1 << 20)
