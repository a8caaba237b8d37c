"""No pair of cohorts that differ by one site is farther apart than a strategy says."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from strategies import KINDS, ROOT, ModelUpdate, Ring, Sensitivity, ServerState, Strategy
from strategies.bulyan import Bulyan
from strategies.fedavg import FedAvg
from strategies.fltrust import FLTrust
from strategies.geometric_median import GeometricMedian
from strategies.krum import Krum, MultiKrum
from strategies.median import CoordinateMedian
from strategies.norm_bounding import NormBounding
from strategies.qfedavg import QFedAvg
from strategies.trimmed_mean import TrimmedMean
from tests.strategies.cohorts import fold

Floats = NDArray[np.float64]
RING = Ring(fraction_bits=30, magnitude=2.0**12, max_weight=50)
CLIP = 2.0
MOST = 2.0**16
"""Of a number that is folded beside the arrays."""
SPECIMENS: dict[str, Strategy] = {
    tag: kind() for tag, kind in KINDS.items() if kind.model_kind == "arrays"
} | {
    "median of buckets": CoordinateMedian(bucket_size=2),
    "krum of buckets": Krum(bucket_size=2),
    "three of many": MultiKrum(num_malicious=1, num_selected=3),
    "two at each end": TrimmedMean(num_malicious=2),
    "many iterations": GeometricMedian(iterations=40),
    "bulyan of two": Bulyan(num_malicious=2),
    "bounded more than clipped": NormBounding(max_norm=0.5),
    "half a fairness": QFedAvg(q=0.5),
    "twice a fairness": QFedAvg(q=2.0, lipschitz=1.0, max_loss=10.0),
}
EVERY = [pytest.param(one, id=name) for name, one in SPECIMENS.items()]


class Cohort:
    """Rows of clipped vectors, two halves each (the delta and a second vector), and numbers."""

    def __init__(self, rows: Floats, weights: Sequence[int], numbers: Sequence[float]) -> None:
        lengths = np.linalg.norm(rows, axis=-1, keepdims=True)
        self.rows = rows * np.minimum(1, CLIP / np.maximum(lengths, 1e-300))
        self.weights, self.numbers = weights, numbers

    def updates(self, strategy: Strategy) -> list[ModelUpdate]:
        sent = []
        for k, (row, weight, number) in enumerate(
            zip(self.rows, self.weights, self.numbers, strict=True)
        ):
            delta = {"a": row[0][:-1], "b": row[0][-1]}
            for vector in strategy.vectors:
                delta |= {f"{vector}/a": row[1][:-1], f"{vector}/b": row[1][-1]}
            told = dict.fromkeys(strategy.scalars, number)
            sent.append(ModelUpdate(f"site-{k:02}", 1, delta, weight, told))
        return sent


def parts(strategy: Strategy, updates: list[ModelUpdate], root: Floats) -> dict[str, Floats]:
    """What the strategy bounds, by part, each as one vector."""
    model = {"a": np.zeros(len(root) - 1), "b": np.zeros(())}
    if strategy.wants_root:
        partial = strategy.zero(ServerState(model))
        own = ModelUpdate(ROOT, 1, {"a": root[:-1], "b": root[-1]}, 1)
        for update in (own, *updates):
            strategy.accumulate(partial, update, RING)
    else:
        partial = fold(updates, strategy, model, RING)
    if strategy.sensitivity(CLIP, 1).of == "result":
        delta = strategy.finish(partial, RING)
        return {"delta": np.append(delta["a"], delta["b"])}
    sums = {name: x / RING.scale for name, x in partial.sums.items()}
    found = {"delta": np.append(sums["a"], sums["b"]), "weight": np.array([float(partial.weight)])}
    for vector in strategy.vectors:
        found[vector] = np.append(sums[f"{vector}/a"], sums[f"{vector}/b"])
    for name in strategy.sums:
        found[name] = np.array([sums[f"scalars/{name}"] * MOST / RING.magnitude])
    return found


def apart(strategy: Strategy, cohort: Cohort, root: Floats, gone: int) -> dict[str, float]:
    """How far apart the parts are with and without one site."""
    updates = cohort.updates(strategy)
    with_ = parts(strategy, updates, root)
    without = parts(strategy, updates[:gone] + updates[gone + 1 :], root)
    return {name: float(np.linalg.norm(x - without[name])) for name, x in with_.items()}


def drawn(rng: np.random.Generator, shape: str, sites: int, size: int) -> Cohort:
    """A cohort of a shape that is awkward for one fold or another; all vectors at full length."""
    match shape:
        case "anyhow":
            rows = rng.normal(size=(sites, 2, size))
        case "two clusters":
            side = np.where(np.arange(sites) < sites // 2, 1.0, -1.0)[:, None, None]
            rows = side * rng.normal(size=size) + 0.01 * rng.normal(size=(sites, 2, size))
        case "signs":
            rows = rng.choice([-1.0, 1.0], (sites, 2, size))
        case _:  # one entry each, so that every coordinate has its own site that counts
            rows = np.zeros((sites, 2, size))
            rows[np.arange(sites), :, rng.integers(0, size, sites)] = rng.choice([-9.0, 9.0])
    weights = rng.choice([1, RING.max_weight], sites).tolist()
    return Cohort(rows * 1e3, weights, rng.choice([1.0, 3.0, 40.0], sites).tolist())


@pytest.mark.parametrize("strategy", EVERY)
def test_no_pair_that_a_search_finds_is_farther_apart_than_is_stated(strategy: Strategy) -> None:
    """Awkward cohorts, and from the worst of them a walk uphill."""
    rng = np.random.default_rng(11)
    bounds = strategy.sensitivity(CLIP, RING.max_weight).parts
    worst, start = -1.0, None
    smallest = strategy.min_updates + 1
    for turn in range(32):
        shape = ("anyhow", "two clusters", "signs", "one entry each")[turn % 4]
        sites = smallest + turn // 4 % 3
        cohort = drawn(rng, shape, sites, size=5)
        root, gone = rng.normal(size=5), int(rng.integers(sites))
        root *= CLIP / np.linalg.norm(root)
        ratio = checked(apart(strategy, cohort, root, gone), bounds)
        if ratio > worst:
            worst, start = ratio, (cohort, root, gone)
    assert start is not None
    cohort, root, gone = start
    for turn in range(40):
        step = rng.normal(size=cohort.rows.shape) * 0.5 ** (turn / 8)
        nearby = Cohort(cohort.rows + step, cohort.weights, cohort.numbers)
        ratio = checked(apart(strategy, nearby, root, gone), bounds)
        if ratio > worst:
            worst, cohort = ratio, nearby
    assert worst > 0.2  # a bound that nothing comes near is worth nothing


def checked(found: dict[str, float], bounds: object) -> float:
    """Largest share of its bound that the delta takes, when no part exceeds its own."""
    assert isinstance(bounds, dict)
    assert found.keys() == bounds.keys()
    for name, distance in found.items():
        slack = RING.max_weight * 3 * 2.0**-RING.fraction_bits * MOST / RING.magnitude
        assert distance <= bounds[name] + slack, name
    return float(found["delta"] / bounds["delta"])


def along(*values: float) -> list[ModelUpdate]:
    return [
        ModelUpdate(f"site-{k:02}", 1, {"w": np.array([v * CLIP])}, 1) for k, v in enumerate(values)
    ]


@pytest.mark.parametrize(
    ("strategy", "values", "share"),
    [
        (CoordinateMedian(), (1, 1, -1, -1), 1 / (5 / math.sqrt(24))),
        (TrimmedMean(), (1, 1, -1, -1), 1.0),
        (Krum(), (1, 1, 1, -1, -1, -1), 1.0),
        (NormBounding(max_norm=9.0), (1, 1), 1.0),
        (FedAvg(), (1, 1), 1.0),
    ],
    ids=["median", "trimmed mean", "krum", "norm bounding", "fedavg"],
)
def test_some_bounds_are_reached(
    strategy: Strategy, values: tuple[float, ...], share: float
) -> None:
    """Two clusters as far apart as clipping lets them be; the first site decides."""
    updates = along(*values)
    model, stated = {"w": np.zeros(1)}, strategy.sensitivity(CLIP, 1)
    ends = []
    for cohort in (updates, updates[1:]):
        partial = fold(cohort, strategy, model, RING)
        found = (
            strategy.finish(partial, RING)["w"]
            if stated.of == "result"
            else partial.sums["w"] / RING.scale
        )
        ends.append(float(found[0]))

    assert abs(ends[0] - ends[1]) == pytest.approx(share * stated.parts["delta"], rel=1e-9)


def test_fltrusts_bound_is_come_near_to() -> None:
    """A site almost at a right angle to the root, and one far more trusted on the other side."""
    root = np.array([CLIP, 0.0])
    rows = np.array([[[1.0, -10.0]] * 2, [[0.001, 10.0]] * 2])

    found = apart(FLTrust(), Cohort(rows, [1, 1], [1.0, 1.0]), root, gone=0)

    assert 0.99 < found["delta"] / FLTrust().sensitivity(CLIP, 1).parts["delta"] <= 1


@pytest.mark.parametrize("strategy", EVERY)
def test_a_bound_says_of_what_it_is(strategy: Strategy) -> None:
    stated = strategy.sensitivity(CLIP, 50)

    assert isinstance(stated, Sensitivity)
    if stated.of == "result":
        assert stated.parts.keys() == {"delta"}
        assert not strategy.zero(ServerState({"w": np.zeros(1)})).sums
    else:
        assert stated.parts.keys() == {"delta", "weight", *strategy.vectors, *strategy.sums}
    assert all(0 < bound < math.inf for bound in stated.parts.values())


@pytest.mark.parametrize("strategy", EVERY)
def test_twice_the_clipping_is_at_least_no_less(strategy: Strategy) -> None:
    one, two = strategy.sensitivity(1.0, 9).parts, strategy.sensitivity(2.0, 9).parts

    assert all(two[name] >= one[name] for name in one)


def test_a_site_that_counts_once_does_so_whatever_it_claims() -> None:
    for strategy in (one for one in SPECIMENS.values() if one.sensitivity(1.0, 50).of == "sum"):
        weight = strategy.sensitivity(1.0, 50).parts["weight"]
        updates = Cohort(np.ones((1, 2, 3)), [50], [1.0]).updates(strategy)
        ring = RING
        model = {"a": np.zeros(2), "b": np.zeros(())}
        assert fold(updates, strategy, model, ring).weight == weight
        lighter = [replace(update, num_examples=1) for update in updates]
        assert fold(lighter, strategy, model, ring).weight == 1
