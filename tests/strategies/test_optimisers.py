"""Each server optimiser against its source, written out in plain floats."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from strategies import KINDS, AnyStrategy, FedAvg, Strategy
from strategies.fedavgm import FedAvgM
from strategies.fedopt import FedAdagrad, FedAdam, FedYogi
from strategies.fedprox import FedProx

ROUNDS = st.lists(st.floats(-10, 10), min_size=1, max_size=6)


def trained(strategy: Strategy, deltas: list[float], start: float = 0.0) -> float:
    state = strategy.init({"w": np.array(start)})
    for delta in deltas:
        state = strategy.step(state, {"w": np.array(delta)})
    assert state.round == len(deltas)
    return float(state.params["w"])


@given(ROUNDS, st.floats(0.1, 2))
def test_fedavg_adds_what_the_clients_moved(deltas: list[float], eta: float) -> None:
    """McMahan et al. 2017, Algorithm 1: w_{t+1} = sum n_k/n w_k = w_t + sum n_k/n (w_k - w_t)."""
    assert trained(FedAvg(eta=eta), deltas, 3.0) == pytest.approx(3.0 + eta * sum(deltas))


@given(ROUNDS, st.floats(0.1, 2), st.floats(0, 0.99))
def test_fedavgm_follows_section_4_3(deltas: list[float], eta: float, beta: float) -> None:
    """Hsu et al. 2019: v <- beta v + dw, w <- w - v, with dw = global - local."""
    w, v = 0.0, 0.0
    for delta in deltas:
        v = beta * v + (-delta)
        w -= eta * v

    assert trained(FedAvgM(eta=eta, beta=beta), deltas) == pytest.approx(w, abs=1e-9)


@pytest.mark.parametrize(
    ("strategy", "second_moment"),
    [
        (FedAdagrad(beta_1=0.9), lambda v, d: v + d * d),
        (FedYogi(), lambda v, d: v - 0.01 * d * d * ((v > d * d) - (v < d * d))),
        (FedAdam(), lambda v, d: 0.99 * v + 0.01 * d * d),
    ],
    ids=["adagrad", "yogi", "adam"],
)
@given(deltas=ROUNDS)
def test_fedopt_follows_algorithm_2(
    strategy: FedAdagrad, second_moment: Callable[[float, float], float], deltas: list[float]
) -> None:
    """Reddi et al. 2021, Algorithm 2, lines 10 to 14."""
    x, m, v = 0.0, 0.0, strategy.tau**2
    for d in deltas:
        m, v = 0.9 * m + 0.1 * d, second_moment(v, d)
        x += strategy.eta * m / (v**0.5 + strategy.tau)

    assert trained(strategy, deltas) == pytest.approx(x, rel=1e-9, abs=1e-12)


@given(ROUNDS)
def test_fedprox_differs_from_fedavg_at_the_client_only(deltas: list[float]) -> None:
    assert trained(FedProx(mu=0.3), deltas) == trained(FedAvg(), deltas)
    assert FedProx(mu=0.3).client_half().proximal_mu == 0.3
    assert FedAvg().client_half().proximal_mu == 0.0


@pytest.mark.parametrize("strategy", [FedAvg(), FedAvgM(), FedAdam(), FedYogi(), FedAdagrad()])
def test_nothing_moves_where_no_client_moved(strategy: Strategy) -> None:
    assert trained(strategy, [0.0, 0.0], 1.5) == 1.5


def test_every_strategy_has_the_kind_that_a_job_names() -> None:
    assert list(KINDS) == [
        "bulyan",
        "coordinate-median",
        "fedadagrad",
        "fedadam",
        "fedasync",
        "fedavg",
        "fedavgm",
        "fedbuff",
        "feddyn",
        "fednova",
        "fedprox",
        "fedyogi",
        "fltrust",
        "geometric-median",
        "krum",
        "multi-krum",
        "norm-bounding",
        "qfedavg",
        "scaffold",
        "tally",
        "trimmed-mean",
        "xgb-bagging",
        "xgb-cyclic",
    ]


@pytest.mark.parametrize(
    ("text", "strategy"),
    [
        (b'{"kind": "fedavg"}', FedAvg(eta=1.0)),
        (b'{"kind": "fedprox", "mu": 0.5}', FedProx(eta=1.0, mu=0.5)),
        (b'{"kind": "fedadam", "eta": 0.5}', FedAdam(eta=0.5, beta_1=0.9, beta_2=0.99, tau=1e-3)),
    ],
    ids=["fedavg", "fedprox", "fedadam"],
)
def test_a_document_becomes_a_strategy(text: bytes, strategy: Strategy) -> None:
    assert msgspec.json.decode(text, type=AnyStrategy) == strategy


@pytest.mark.parametrize(
    "text",
    [
        b'{"kind": "fedsgd"}',
        b'{"kind": "fedavg", "eta": 0}',
        b'{"kind": "fedavg", "etta": 1}',
        b'{"kind": "fedadam", "beta_2": 1}',
        b'{"kind": "fedprox", "mu": -1}',
        b'{"kind": "fedavg", "eta": "1"}',
    ],
    ids=["kind", "bound", "misspelt", "decay", "negative", "text"],
)
def test_what_is_no_strategy_is_refused(text: bytes) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(text, type=AnyStrategy)
