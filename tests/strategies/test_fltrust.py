"""FLTrust against Algorithm 2 of Cao et al. 2021, in plain floats; and where that is silent."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from strategies import (
    ROOT,
    EmptyCohort,
    Incompatible,
    ModelUpdate,
    NotFinite,
    Partial,
    ServerState,
    digest_of_fold,
)
from strategies.fltrust import FLTrust, RootMissing
from tests.strategies.cohorts import RING

Point = list[float]
POINTS = st.lists(
    st.lists(st.integers(-64, 64).map(lambda q: q / 4), min_size=3, max_size=3),
    min_size=1,
    max_size=8,
)
NONZERO = st.lists(st.integers(1, 64).map(lambda q: q / 4), min_size=3, max_size=3)


def update(site: str, point: Point, round: int = 1) -> ModelUpdate:
    return ModelUpdate(site, round, {"w": np.array(point, np.float32)}, 7)


def folded(root: Point, points: list[Point], order: int = 1) -> Partial:
    strategy = FLTrust()
    partial = strategy.zero(ServerState({"w": np.zeros(len(root), np.float32)}))
    cohort = [update(ROOT, root), *(update(f"site-{i:04}", p) for i, p in enumerate(points))]
    for one in cohort[::order]:
        strategy.accumulate(partial, one, RING)
    return partial


def result(root: Point, points: list[Point]) -> Point:
    found: Point = FLTrust().finish(folded(root, points), RING)["w"].tolist()
    return found


def dot(x: Point, y: Point) -> float:
    return math.fsum(a * b for a, b in zip(x, y, strict=True))


@settings(max_examples=60)
@given(NONZERO, POINTS)
def test_the_update_is_that_of_algorithm_2(root: Point, points: list[Point]) -> None:
    length = math.sqrt(dot(root, root))
    total, trusts = [0.0] * 3, 0.0
    for g in points:
        if not any(g):
            continue
        own = math.sqrt(dot(g, g))
        trust = max(0.0, dot(g, root) / own / length)
        trusts += trust
        total = [t + trust * length / own * x for t, x in zip(total, g, strict=True)]

    expected = [t / trusts for t in total] if trusts > 1e-12 else [0.0] * 3
    found = result(root, points)

    assert found == pytest.approx(expected, abs=1e-9)
    assert math.sqrt(dot(found, found)) <= length * (1 + 1e-9)


@settings(max_examples=30)
@given(NONZERO, POINTS, st.sampled_from([0.25, 2.0, 4.0]))
def test_the_length_of_an_update_does_not_show_and_that_of_the_roots_does(
    root: Point, points: list[Point], scale: float
) -> None:
    scaled = [[x * scale for x in p] if k % 2 else p for k, p in enumerate(points)]
    expected = result(root, points)

    assert result(root, scaled) == pytest.approx(expected, abs=1e-9)
    longer = [x * scale for x in root]
    assert result(longer, points) == pytest.approx([x * scale for x in expected], abs=1e-9)


@pytest.mark.parametrize(
    ("root", "points"),
    [
        ([1.0, 1.0], [[-1.0, -1.0], [-3.0, 0.0]]),
        ([1.0, 0.0], [[0.0, 1.0]]),
        ([0.0, 0.0], [[1.0, 1.0]]),
        ([1.0, 1.0], [[0.0, 0.0]]),
    ],
    ids=["all point away", "one is orthogonal", "the root stands still", "a site stands still"],
)
def test_where_nobody_is_trusted_the_model_stays_what_it_was(
    root: Point, points: list[Point]
) -> None:
    state = ServerState({"w": np.array([5.0, -5.0], np.float32)})

    after = FLTrust().advance(state, folded(root, points), RING)

    assert after.params["w"].tolist() == [5.0, -5.0]
    assert after.round == 1


def test_a_majority_of_wrong_sites_does_not_turn_the_model() -> None:
    """Nine of ten go the other way, a hundred times as far."""
    honest, wrong = [1.0, 0.5], [-60.0, -30.0]

    assert result([1.0, 0.4], [honest, *[wrong] * 9]) == pytest.approx(
        [x * math.hypot(1.0, 0.4) / math.hypot(1.0, 0.5) for x in honest]
    )


def test_order_shards_and_tiles_do_not_show() -> None:
    rng = np.random.default_rng(4)
    root, *points = rng.normal(size=(7, 140_000)).tolist()
    strategy, whole = FLTrust(), folded(root, points)
    backwards = folded(root, points, -1)
    left = strategy.zero(ServerState({"w": np.zeros(140_000)}))
    right = strategy.zero(ServerState({"w": np.zeros(140_000)}))
    for k, point in enumerate(points):
        strategy.accumulate(left if k < 3 else right, update(f"site-{k:04}", point), RING)
    strategy.accumulate(right, update(ROOT, root), RING)
    merged = strategy.merge(left, right)

    results = [strategy.finish(one, RING)["w"].tobytes() for one in (whole, backwards, merged)]

    assert len(set(results)) == 1
    assert len({digest_of_fold(one) for one in (whole, backwards, merged)}) == 1


def test_the_servers_own_update_is_none_of_the_cohorts_and_shows_in_the_digest() -> None:
    partial = folded([1.0, 2.0], [[1.0, 0.0]])

    assert (partial.num_updates, partial.sites) == (1, {"site-0000"})
    assert digest_of_fold(partial) != digest_of_fold(folded([1.0, 3.0], [[1.0, 0.0]]))
    with pytest.raises(EmptyCohort):
        FLTrust().finish(folded([1.0, 2.0], []), RING)


def test_without_the_servers_own_update_there_is_no_trust() -> None:
    partial = FLTrust().zero(ServerState({"w": np.zeros(1)}))
    FLTrust().accumulate(partial, update("site-0001", [1.0]), RING)

    with pytest.raises(RootMissing, match="round 1"):
        FLTrust().finish(partial, RING)


def test_a_bad_update_of_the_servers_own_is_refused_and_two_are_too() -> None:
    strategy = FLTrust()
    partial = strategy.zero(ServerState({"w": np.zeros(1)}))
    for wrong, error in [
        (update(ROOT, [math.nan]), NotFinite),
        (update(ROOT, [1.0, 1.0]), Incompatible),
        (update(ROOT, [1.0], round=2), Incompatible),
    ]:
        with pytest.raises(error, match=ROOT):
            strategy.accumulate(partial, wrong, RING)
        assert not partial.kept

    strategy.accumulate(partial, update(ROOT, [1.0]), RING)
    with pytest.raises(Incompatible, match="second"):
        strategy.accumulate(partial, update(ROOT, [2.0]), RING)
    with pytest.raises(ValueError, match="both"):
        strategy.merge(partial, folded([1.0], []))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_the_dtype_of_updates_does_not_show(dtype: type[np.floating]) -> None:
    strategy = FLTrust()
    partial = strategy.zero(ServerState({"w": np.zeros(2)}))
    for site, point in [(ROOT, [1.0, 0.5]), ("a", [0.5, 0.5]), ("b", [2.0, -0.25])]:
        delta = {"w": np.array(point, dtype)}
        delta["w"].flags.writeable = False
        strategy.accumulate(partial, ModelUpdate(site, 1, delta, 1), RING)

    found = strategy.finish(partial, RING)["w"].tolist()

    assert found == result([1.0, 0.5], [[0.5, 0.5], [2.0, -0.25]])
