"""SCAFFOLD and FedDyn against their sources, in plain floats, over rounds of drawn sites."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from strategies import LocalResult, ModelUpdate, Parameters, Ring, Strategy
from strategies.feddyn import FedDyn
from strategies.scaffold import Scaffold

RING = Ring(fraction_bits=32, magnitude=2.0**10, max_weight=1000)
RATE = 0.1
SITES = [(1.0, -2.0, 3), (0.5, 4.0, 1), (2.0, 0.5, 5), (0.2, 7.0, 2)]
"""Curvature and minimum of each site's loss a/2 * (w - b)**2, and its local steps."""
COHORTS = st.lists(
    st.sets(st.integers(0, len(SITES) - 1), min_size=1), min_size=1, max_size=6
)  # fmt: skip


def local_steps(k: int, x: float, correction: float, mu: float) -> float:
    a, b, steps = SITES[k]
    y = x
    for _ in range(steps):
        y -= RATE * (a * (y - b) + correction + mu * (y - x))
    return y


def federated(
    strategy: Strategy, cohorts: list[set[int]]
) -> tuple[float, dict[str, float], dict[int, float]]:
    """Rounds by the strategy's methods: the model, the moments, and what sites keep."""
    state = strategy.init({"w": np.array(0.5)})
    memories: dict[int, Parameters] = {}
    for number, cohort in enumerate(cohorts, start=1):
        offered = strategy.offer(state)
        partial = strategy.zero(state)
        partial.population = len(SITES)
        x = float(strategy.model_of(offered)["w"])
        for k in cohort:
            memory = memories.get(k, {})
            half = strategy.half_at(offered, memory)
            correction = float((half.correction or {}).get("w", 0.0))
            y = local_steps(k, x, correction, half.proximal_mu)
            a, b, steps = SITES[k]
            found = LocalResult(
                {"w": np.array(y - x)},
                {"steps": steps, "rate": RATE},
                {"w": np.array(a * (x - b))},
                frozenset({"w"}),
            )
            share = strategy.conclude(found, offered, memory)
            strategy.accumulate(partial, ModelUpdate(str(k), number, share.sent, k + 1), RING)
            memories[k] = share.memory
        state = strategy.step(state, strategy.finish(partial, RING))
    moments = {symbol: float(tree["w"]) for symbol, tree in state.moments.items()}
    return float(state.params["w"]), moments, {k: float(m["w"]) for k, m in memories.items()}


@pytest.mark.parametrize("option", ["path", "gradient"])
@given(cohorts=COHORTS)
def test_scaffold_is_algorithm_1(option: str, cohorts: list[set[int]]) -> None:
    x, c, c_i = 0.5, 0.0, dict.fromkeys(range(len(SITES)), 0.0)
    for cohort in cohorts:
        moves, changes = [], []
        for k in cohort:
            a, b, steps = SITES[k]
            y = x
            for _ in range(steps):
                y -= RATE * (a * (y - b) - c_i[k] + c)
            along = c_i[k] - c + (x - y) / (steps * RATE)
            renewed = along if option == "path" else a * (x - b)
            moves.append(y - x)
            changes.append(renewed - c_i[k])
            c_i[k] = renewed
        x += 0.9 * sum(moves) / len(cohort)
        c += len(cohort) / len(SITES) * sum(changes) / len(cohort)

    found, moments, kept = federated(Scaffold(eta=0.9, option=option), cohorts)  # type: ignore[arg-type]

    assert found == pytest.approx(x, abs=1e-7)
    assert moments["c"] == pytest.approx(c, abs=1e-7)
    assert all(kept[k] == pytest.approx(c_i[k], abs=1e-7) for k in kept)
    assert moments["c"] == pytest.approx(sum(kept.values()) / len(SITES), abs=1e-7)


def test_scaffold_ends_where_the_mean_loss_is_least_and_fedavg_does_not() -> None:
    """Theorem III has no term for heterogeneity; local steps alone leave FedAvg beside it."""
    everyone = [set(range(len(SITES)))] * 400
    least = sum(a * b for a, b, _ in SITES) / sum(a for a, _, _ in SITES)

    found, _, _ = federated(Scaffold(), everyone)

    drifted = 0.5
    for _ in everyone:
        drifted = sum(local_steps(k, drifted, 0.0, 0.0) for k in range(len(SITES))) / len(SITES)
    assert found == pytest.approx(least, abs=1e-6)
    assert abs(drifted - least) > 0.1


@given(cohorts=COHORTS)
def test_feddyn_is_algorithm_1(cohorts: list[set[int]]) -> None:
    alpha, theta, h, g = 0.7, 0.5, 0.0, dict.fromkeys(range(len(SITES)), 0.0)
    for cohort in cohorts:
        locals_ = []
        for k in cohort:
            local = local_steps(k, theta, -g[k], alpha)
            g[k] -= alpha * (local - theta)
            locals_.append(local)
        h -= alpha / len(SITES) * sum(local - theta for local in locals_)
        theta = sum(locals_) / len(locals_) - h / alpha

    found, moments, kept = federated(FedDyn(alpha=alpha), cohorts)

    assert found == pytest.approx(theta, abs=1e-7)
    assert moments["h"] == pytest.approx(h, abs=1e-7)
    assert all(kept[k] == pytest.approx(g[k], abs=1e-7) for k in kept)


def test_feddyn_ends_where_the_mean_loss_is_least() -> None:
    """Proposition 1: a fixed point's local gradients sum to zero."""
    least = sum(a * b for a, b, _ in SITES) / sum(a for a, _, _ in SITES)

    found, moments, kept = federated(FedDyn(alpha=1.0), [set(range(len(SITES)))] * 1500)

    assert found == pytest.approx(least, abs=1e-5)
    assert moments["h"] == pytest.approx(sum(kept.values()) / len(SITES), abs=1e-5)


@pytest.mark.parametrize("strategy", [Scaffold(), FedDyn()], ids=["scaffold", "feddyn"])
def test_a_site_counts_once_whatever_it_says_of_its_examples(strategy: Strategy) -> None:
    state = strategy.init({"w": np.zeros(())})
    sent = {"w": np.array(1.0)} | {f"{v}/w": np.array(1.0) for v in strategy.vectors}
    none = {name: np.zeros(()) for name in sent}

    partial = strategy.zero(state)
    strategy.accumulate(partial, ModelUpdate("a", 1, sent, 1000), RING)
    strategy.accumulate(partial, ModelUpdate("b", 1, none, 1), RING)

    assert strategy.finish(partial, RING)["w"] == 0.5
    clip = 1.0
    assert strategy.sensitivity(clip, 1000).parts["delta"] == clip
    assert int(partial.sums["w"]) / RING.scale <= clip
    for vector in strategy.vectors:
        assert (
            int(partial.sums[f"{vector}/w"]) / RING.scale
            <= strategy.sensitivity(clip, 9).parts[vector]
        )


def test_running_statistics_have_no_control_variate() -> None:
    strategy, params = Scaffold(), {"w": np.array(1.0), "mean": np.array(5.0)}
    offered = strategy.offer(strategy.init(params))
    found = LocalResult(
        {"w": np.array(-0.2), "mean": np.array(3.0)},
        {"steps": 2.0, "rate": 0.1},
        trainable=frozenset({"w"}),
    )

    share = strategy.conclude(found, offered, {})

    assert share.memory["mean"] == 0.0
    assert share.sent["control/mean"] == 0.0
    assert share.sent["mean"] == 3.0
    assert share.memory["w"] == pytest.approx(1.0)
