"""The robust folds: the papers' equations in plain numbers, and what f wrong sites can do."""

from __future__ import annotations

import itertools
import math
import statistics

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from strategies import AnyStrategy, CohortTooSmall, ModelUpdate, ServerState, Strategy
from strategies.bulyan import Bulyan
from strategies.geometric_median import GeometricMedian
from strategies.kept import middle_of_columns, sort_columns
from strategies.krum import Krum, MultiKrum
from strategies.median import CoordinateMedian
from strategies.norm_bounding import NormBounding
from strategies.trimmed_mean import TrimmedMean
from tests.strategies.cohorts import RING, float32s, fold

FEW = settings(max_examples=30)
Point = list[float]
ROBUST = [
    CoordinateMedian(),
    TrimmedMean(num_malicious=2),
    GeometricMedian(iterations=50),
    Krum(num_malicious=2),
    MultiKrum(num_malicious=2),
    Bulyan(num_malicious=2),
]
CONDITIONS = [
    (CoordinateMedian(), 3),
    (GeometricMedian(), 3),
    (TrimmedMean(num_malicious=3), 7),
    (Krum(num_malicious=3), 9),
    (MultiKrum(num_malicious=3), 9),
    (MultiKrum(num_malicious=3, num_selected=6), 11),
    (Bulyan(num_malicious=3), 15),
    (NormBounding(), 1),
    (CoordinateMedian(bucket_size=2), 5),
    (Krum(num_malicious=1, bucket_size=2), 9),
]


def sent(points: list[Point], round: int = 1) -> list[ModelUpdate]:
    """Points of quarters, which the ring holds as they are."""
    return [
        ModelUpdate(f"site-{i:04}", round, {"w": np.array(p, np.float32)}, 1 + i)
        for i, p in enumerate(points)
    ]


def result(strategy: Strategy, points: list[Point]) -> Point:
    model = {"w": np.zeros(len(points[0]), np.float32)}
    found: Point = strategy.finish(fold(sent(points), strategy, model), RING)["w"].tolist()
    return found


def points(fewest: int, most: int) -> st.SearchStrategy[list[Point]]:
    coordinate = st.integers(-64, 64).map(lambda q: q / 4)
    return st.lists(st.lists(coordinate, min_size=3, max_size=3), min_size=fewest, max_size=most)


def squared(x: Point, y: Point) -> float:
    return sum((a - b) ** 2 for a, b in zip(x, y, strict=True))


def krum_score(all_of: list[Point], i: int, f: int) -> float:
    """Blanchard et al. 2017, section 4."""
    others = sorted(squared(all_of[i], x) for j, x in enumerate(all_of) if j != i)
    return sum(others[: max(1, len(all_of) - f - 2)])


def mean(of: list[Point]) -> Point:
    return [math.fsum(column) / len(of) for column in zip(*of, strict=True)]


@FEW
@given(points(5, 9))
def test_the_trimmed_mean_is_that_of_definition_2(cohort: list[Point]) -> None:
    """Yin et al. 2018: the mean without the share beta, here f = 2, at each end."""
    expected = [statistics.fmean(sorted(c)[2:-2]) for c in zip(*cohort, strict=True)]
    assert result(TrimmedMean(num_malicious=2), cohort) == pytest.approx(expected, abs=1e-12)


@FEW
@given(points(5, 9))
def test_krum_takes_the_lowest_score(cohort: list[Point]) -> None:
    scores = [krum_score(cohort, i, 1) for i in range(len(cohort))]
    assert result(Krum(num_malicious=1), cohort) == cohort[scores.index(min(scores))]


@FEW
@given(points(6, 9), st.one_of(st.none(), st.integers(1, 3)))
def test_multi_krum_averages_the_m_lowest_scores(cohort: list[Point], m: int | None) -> None:
    scores = [krum_score(cohort, i, 1) for i in range(len(cohort))]
    order = sorted(range(len(cohort)), key=lambda i: (scores[i], i))
    chosen = [cohort[i] for i in order[: m or len(cohort) - 3]]

    found = result(MultiKrum(num_malicious=1, num_selected=m), cohort)

    assert found == pytest.approx(mean(chosen), abs=1e-12)


@FEW
@given(points(7, 10))
def test_bulyan_is_that_of_section_4(cohort: list[Point]) -> None:
    """El Mhamdi et al. 2018: theta = n - 2f times Krum, then the beta = theta - 2f nearest."""
    left, chosen, f = list(cohort), [], 1
    while len(chosen) < len(cohort) - 2 * f:
        scores = [krum_score(left, i, f) for i in range(len(left))]
        chosen.append(left.pop(scores.index(min(scores))))
    expected = []
    for column in zip(*chosen, strict=True):
        middle = statistics.median(column)
        near = sorted(column, key=lambda x: (abs(x - middle), x))[: len(chosen) - 2 * f]
        expected.append(statistics.fmean(near))

    assert result(Bulyan(num_malicious=1), cohort) == pytest.approx(expected, abs=1e-12)


@FEW
@given(points(3, 8), st.integers(1, 6))
def test_the_geometric_median_is_algorithm_2(cohort: list[Point], iterations: int) -> None:
    """Pillutla et al. 2022, with the iterate written out instead of distances."""
    z = mean(cohort)
    for _ in range(iterations):
        beta = [1 / max(0.01, math.sqrt(squared(z, x))) for x in cohort]
        z = [
            math.fsum(b * x[k] for b, x in zip(beta, cohort, strict=True)) / math.fsum(beta)
            for k in range(3)
        ]
    strategy = GeometricMedian(iterations=iterations, nu=0.01)
    assert result(strategy, cohort) == pytest.approx(z, abs=1e-5)


@FEW
@given(points(1, 5), st.sampled_from([0.5, 1.0, 8.0]))
def test_norm_bounding_is_the_mean_of_shortened_updates(cohort: list[Point], bound: float) -> None:
    """Sun et al. 2019: D / max(1, |D| / M)."""
    short = [[x / max(1.0, math.hypot(*point) / bound) for x in point] for point in cohort]
    found = result(NormBounding(max_norm=bound), cohort)

    assert found == pytest.approx(mean(short), abs=2.0**-24)
    assert math.hypot(*found) <= bound + 3 * 2.0**-24


@pytest.mark.parametrize("strategy", ROBUST, ids=lambda s: s.__struct_config__.tag)
@FEW
@given(
    honest=points(9, 9),
    wrong=st.lists(st.lists(float32s(64), min_size=3, max_size=3), min_size=2, max_size=2),
)
def test_two_wrong_sites_of_eleven_cannot_leave_the_neighbourhood_of_the_honest(
    strategy: Strategy, honest: list[Point], wrong: list[Point]
) -> None:
    """What the papers promise is a bound by the spread of the honest; this is the plainest form."""
    found = result(strategy, honest + wrong)

    spread = max(math.sqrt(squared(x, y)) for x, y in itertools.product(honest, honest))
    nearest = min(math.sqrt(squared(found, x)) for x in honest)
    assert nearest <= 4 * spread + 1e-4


@pytest.mark.parametrize(
    "strategy",
    [*ROBUST, NormBounding(), CoordinateMedian(bucket_size=2), GeometricMedian(bucket_size=3)],
    ids=str,
)
def test_the_order_of_arrival_and_the_claimed_examples_do_not_show(strategy: Strategy) -> None:
    rng = np.random.default_rng(5)
    cohort = sent(rng.normal(size=(11, 50)).tolist())
    model = {"w": np.zeros(50, np.float32)}
    claimed = [ModelUpdate(u.site, u.round, u.delta, 1000) for u in cohort]

    results = [
        strategy.finish(fold(some, strategy, model), RING)["w"].tobytes()
        for some in (cohort, cohort[::-1], cohort[4:] + cohort[:4], claimed)
    ]

    assert len(set(results)) == 1


@pytest.mark.parametrize("strategy", ROBUST, ids=lambda s: s.__struct_config__.tag)
def test_scaling_all_updates_scales_the_result(strategy: Strategy) -> None:
    cohort = np.random.default_rng(6).integers(-64, 64, (11, 20)) / 16
    once, twice = result(strategy, cohort.tolist()), result(strategy, (cohort * 2).tolist())
    assert twice == pytest.approx([2 * x for x in once], abs=1e-5)


@pytest.mark.parametrize("strategy", ROBUST, ids=lambda s: s.__struct_config__.tag)
def test_layers_longer_than_a_tile_are_folded_whole(strategy: Strategy) -> None:
    rows = np.random.default_rng(5).integers(-64, 64, (11, 400_001)) / 16
    model = {"a": np.zeros((400_000,), np.float32), "b": np.zeros((), np.float32)}
    cohort = [
        ModelUpdate(f"s{i:02}", 1, {"a": row[:-1], "b": row[-1]}, 1) for i, row in enumerate(rows)
    ]
    found = strategy.finish(fold(cohort, strategy, model), RING)

    ends = [*range(5), 199_999, 399_998, 399_999]
    if isinstance(strategy, CoordinateMedian | TrimmedMean):
        short = result(strategy, rows[:, ends].tolist())
        assert found["a"][ends].tolist() == short
    assert np.isfinite(found["a"]).all()
    assert found["b"].shape == ()


@pytest.mark.parametrize(("strategy", "fewest"), CONDITIONS, ids=str)
def test_a_cohort_below_the_condition_is_refused(strategy: Strategy, fewest: int) -> None:
    assert strategy.min_updates == fewest
    cohort = [[1.0, 2.0]] * fewest
    assert result(strategy, cohort) == pytest.approx(
        [1.0, 2.0] if fewest > 1 else result(strategy, cohort)
    )
    if fewest > 1:
        with pytest.raises(CohortTooSmall, match=f"{fewest} are needed"):
            result(strategy, cohort[1:])


def test_a_bucket_is_the_mean_of_its_sites() -> None:
    strategy = CoordinateMedian(bucket_size=2)
    cohort = sent([[float(2**i)] for i in range(7)])
    partial = fold(cohort, strategy, {"w": np.zeros(1, np.float32)})
    buckets = strategy.buckets(partial)

    assert [len(bucket) for bucket in buckets] == [2, 2, 2, 1]
    assert sorted(itertools.chain(*buckets)) == [u.site for u in cohort]
    value = {u.site: float(u.delta["w"][0]) for u in cohort}
    means = [statistics.fmean(value[site] for site in bucket) for bucket in buckets]
    assert strategy.finish(partial, RING)["w"].tolist() == [statistics.median(means)]


def test_buckets_differ_by_round_and_seed_but_not_by_order() -> None:
    def drawn(seed: int, round: int, step: int = 1) -> list[list[str]]:
        strategy = Krum(bucket_size=2, bucket_seed=seed)
        partial = strategy.zero(ServerState({"w": np.zeros(1)}, round=round - 1))
        for update in sent([[float(i)] for i in range(9)], round)[::step]:
            strategy.accumulate(partial, update, RING)
        return strategy.buckets(partial)

    assert drawn(0, 1) == drawn(0, 1, -1)
    assert drawn(0, 1) != drawn(1, 1)
    assert drawn(0, 1) != drawn(0, 2)


def test_an_update_too_long_for_float32_squares_is_still_bounded() -> None:
    huge = sent([[60.0] * 4])
    strategy = NormBounding(max_norm=1e-3)
    delta = strategy.finish(fold(huge, strategy, {"w": np.zeros(4)}), RING)
    assert float(np.linalg.norm(delta["w"])) == pytest.approx(1e-3, rel=1e-3)


@FEW
@given(st.integers(1, 70), st.integers(0, 2**32))
def test_the_network_sorts_any_number_of_rows(rows: int, seed: int) -> None:
    x = np.random.default_rng(seed).integers(-5, 5, (rows, 4)).astype(np.int32)
    np.testing.assert_array_equal(np.stack(sort_columns(x.copy())), np.sort(x, axis=0))


@pytest.mark.parametrize("n", range(1, 12))
def test_the_middle_of_sorted_columns_needs_no_more_of_the_network(n: int) -> None:
    zeros_and_ones = (np.arange(2**n) >> np.arange(n)[:, None]) & 1  # all columns of them
    for start in range(n):
        for stop in range(start + 1, n + 1):
            middle = np.stack(middle_of_columns(zeros_and_ones.copy(), start, stop))
            expected = np.sort(zeros_and_ones, axis=0)[start:stop]
            np.testing.assert_array_equal(np.sort(middle, axis=0), expected)


@pytest.mark.parametrize(
    "text",
    [
        b'{"kind": "krum", "num_malicious": 0}',
        b'{"kind": "keptfold"}',
        b'{"kind": "bucketedfold"}',
        b'{"kind": "bulyan", "bucket_size": 2}',
        b'{"kind": "norm-bounding", "max_norm": 0}',
        b'{"kind": "geometric-median", "nu": 0}',
    ],
)
def test_what_is_no_robust_fold_is_refused(text: bytes) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(text, type=AnyStrategy)
