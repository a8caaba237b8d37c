"""Our strategies beside Flower's own on the same updates.

Where they differ: Flower weighs and sums in float32, we exactly, so means agree to float32's
resolution. Its adaptive optimisers start v at 0 where Algorithm 2 starts at tau**2, and its FedAdam
scales eta by a bias correction that Algorithm 2 has not; the tests set v and eta accordingly.

Its robust strategies fold models where ours fold deltas, which changes nothing but rounding. It
trims the share beta of the sites at each end where we trim a number of them. What Krum or
Multi-Krum chose it weighs by examples, of which ours believes nobody: one choice is the same, and
several are where all sites have equally many. Its Bulyan takes theta updates from one run of
Multi-Krum, where the paper (and ours) runs Krum theta times and takes each choice out before the
next; handed the paper's rule it agrees, and with its own it need not.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Message, Metadata, MetricRecord, RecordDict
from flwr.serverapp import strategy as flower
from flwr.serverapp.strategy.multikrum import select_multikrum

from strategies import FedAvg, ModelUpdate, Parameters, ServerState, Strategy
from strategies.bulyan import Bulyan
from strategies.fedavgm import FedAvgM
from strategies.fedopt import FedAdagrad, FedAdam, FedYogi
from strategies.krum import Krum, MultiKrum
from strategies.median import CoordinateMedian
from strategies.trimmed_mean import TrimmedMean
from tests.strategies.cohorts import RING

ROUNDS = 3
SHAPES = {"w": (4, 3), "b": (3,)}


def drawn(rng: np.random.Generator, scale: float) -> dict[str, np.ndarray]:
    return {n: rng.normal(0, scale, shape).astype(np.float32) for n, shape in SHAPES.items()}


def record(arrays: Parameters) -> ArrayRecord:
    return ArrayRecord({name: Array(x) for name, x in arrays.items()})


def replies(params: Parameters, updates: list[ModelUpdate]) -> list[Message]:
    """What clients would have answered: their models, not their deltas."""
    messages = []
    for node, update in enumerate(updates, start=1):
        model = {name: params[name] + update.delta[name] for name in params}
        content = RecordDict(
            {
                "arrays": record(model),
                "metrics": MetricRecord({"num-examples": update.num_examples}),
            }
        )
        metadata = Metadata(
            run_id=1,
            message_id="",
            src_node_id=node,
            dst_node_id=0,
            reply_to_message_id="",
            group_id="",
            created_at=0.0,
            ttl=1e9,
            message_type="train",
        )
        messages.append(Message(content=content, metadata=metadata))
    return messages


def flower_step(
    theirs: flower.FedAvg, number: int, params: Parameters, updates: list[ModelUpdate]
) -> Parameters:
    """One round of Flower's strategy from ``params``."""
    if isinstance(theirs, flower.FedAvgM):
        theirs.current_arrays = record(params)
    elif hasattr(theirs, "current_arrays"):
        theirs.current_arrays = dict(params)
    arrays, _ = theirs.aggregate_train(number, replies(params, updates))
    assert arrays is not None
    return {name: array.numpy() for name, array in arrays.items()}


def our_step(ours: Strategy, state: ServerState, updates: list[ModelUpdate]) -> ServerState:
    partial = ours.zero(state)
    for update in updates:
        ours.accumulate(partial, update, RING)
    return ours.step(state, ours.finish(partial, RING))


def cohort(rng: np.random.Generator, number: int) -> list[ModelUpdate]:
    return [
        ModelUpdate(f"site-{i:04}", number, drawn(rng, 0.1), int(rng.integers(1, 500)))
        for i in range(1, 6)
    ]


def with_outliers(number: int, seed: int, equally_many: bool) -> list[ModelUpdate]:
    """Nine sites alike and two far off, which a robust fold is for."""
    rng = np.random.default_rng(seed)
    scales = [0.1] * 9 + [2.0] * 2
    return [
        ModelUpdate(f"site-{i:04}", number, drawn(rng, scale), 7 if equally_many else 3 * i)
        for i, scale in enumerate(scales, start=1)
    ]


def theta_times_krum(
    contents: list[RecordDict], num_malicious_nodes: int, num_nodes_to_select: int
) -> list[RecordDict]:
    """The paper's selection for Bulyan, out of Flower's own Krum."""
    left, chosen = list(contents), []
    for _ in range(num_nodes_to_select):
        (best,) = select_multikrum(left, num_malicious_nodes, 1)
        chosen.append(best)
        left = [content for content in left if content is not best]
    return chosen


ROBUST = [
    (TrimmedMean(num_malicious=2), lambda: flower.FedTrimmedAvg(beta=0.2), False),
    (CoordinateMedian(), flower.FedMedian, False),
    (Krum(num_malicious=2), lambda: flower.Krum(num_malicious_nodes=2), False),
    (
        MultiKrum(num_malicious=2, num_selected=4),
        lambda: flower.MultiKrum(num_malicious_nodes=2, num_nodes_to_select=4),
        True,
    ),
    (
        Bulyan(num_malicious=2),
        lambda: flower.Bulyan(num_malicious_nodes=2, selection_rule=theta_times_krum),
        True,
    ),
]


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize(
    ("ours", "theirs", "equally_many"),
    ROBUST,
    ids=["trimmed mean", "median", "krum", "multi-krum", "bulyan"],
)
def test_three_robust_rounds_agree_with_flower(
    ours: Strategy, theirs: Callable[[], flower.FedAvg], equally_many: bool, seed: int
) -> None:
    params = drawn(np.random.default_rng(seed), 1.0)
    state = ours.init(params)

    for number in range(1, ROUNDS + 1):
        updates = with_outliers(number, 10 * seed + number, equally_many)
        params = flower_step(theirs(), number, params, updates)
        state = our_step(ours, state, updates)

        for name in SHAPES:
            np.testing.assert_allclose(state.params[name], params[name], rtol=0, atol=2e-5)


def test_where_flower_weighs_or_chooses_otherwise_the_models_differ() -> None:
    """Multi-Krum weighs by examples there; Bulyan's one run of Multi-Krum chooses others."""
    params = drawn(np.random.default_rng(0), 1.0)
    for ours, theirs, equally_many in [
        (
            MultiKrum(num_malicious=2, num_selected=4),
            flower.MultiKrum(num_malicious_nodes=2, num_nodes_to_select=4),
            False,
        ),
        (Bulyan(num_malicious=2), flower.Bulyan(num_malicious_nodes=2), True),
    ]:
        farthest = 0.0
        for seed in range(2):
            updates = with_outliers(1, seed, equally_many)
            state = our_step(ours, ours.init(params), updates)
            other = flower_step(theirs, 1, params, updates)
            farthest = max(farthest, float(np.abs(state.params["w"] - other["w"]).max()))
        assert farthest > 1e-3


def from_zero(state: ServerState) -> ServerState:
    """The state with v = 0, as Flower starts."""
    moments = dict(state.moments)
    if "v" in moments:
        moments["v"] = {name: np.zeros_like(x) for name, x in moments["v"].items()}
    return ServerState(state.params, moments, state.round)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (FedAvg(), flower.FedAvg()),
        (FedAvgM(eta=0.5, beta=0.9), flower.FedAvgM(server_learning_rate=0.5, server_momentum=0.9)),
        (CoordinateMedian(), flower.FedMedian()),
        (FedAdagrad(eta=0.1), flower.FedAdagrad(eta=0.1)),
        (FedYogi(eta=0.1), flower.FedYogi(eta=0.1)),
    ],
    ids=["fedavg", "fedavgm", "median", "fedadagrad", "fedyogi"],
)
def test_three_rounds_agree_with_flower(ours: Strategy, theirs: flower.FedAvg) -> None:
    rng = np.random.default_rng(7)
    params = drawn(rng, 1.0)
    state = from_zero(ours.init(params))

    for number in range(1, ROUNDS + 1):
        updates = cohort(rng, number)
        params = flower_step(theirs, number, params, updates)
        state = our_step(ours, state, updates)

        for name in SHAPES:
            np.testing.assert_allclose(state.params[name], params[name], rtol=0, atol=2e-5)


def test_fedadam_agrees_but_for_the_bias_correction() -> None:
    rng = np.random.default_rng(7)
    params, theirs = drawn(rng, 1.0), flower.FedAdam(eta=0.1)
    state = from_zero(FedAdam().init(params))

    for number in range(1, ROUNDS + 1):
        updates = cohort(rng, number)
        params = flower_step(theirs, number, params, updates)
        t = number + 1
        corrected = 0.1 * np.sqrt(1 - 0.99**t) / (1 - 0.9**t)
        state = our_step(FedAdam(eta=float(corrected)), state, updates)

        for name in SHAPES:
            np.testing.assert_allclose(state.params[name], params[name], rtol=0, atol=2e-5)
