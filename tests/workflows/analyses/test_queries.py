"""Each query against numpy, or plain Python, on the union of the sites' data."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from fractions import Fraction

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.workflows.analyses.tables import found, site
from workflows.analyses import KINDS, AnyFinding, AnyQuery, Query
from workflows.analyses.columns import Columns
from workflows.analyses.count import Count, CountFinding
from workflows.analyses.heavy_hitters import HeavyHitters, HeavyHittersFinding
from workflows.analyses.histogram import Histogram, HistogramFinding
from workflows.analyses.mean import Mean, MeanFinding, Ranged
from workflows.analyses.quantile import Quantile, QuantileFinding
from workflows.data.examples import DataError

VALUES = st.floats(-1000, 1000, width=32)
SITES = st.lists(st.lists(VALUES, min_size=1, max_size=8), min_size=1, max_size=5)
ONE_OF_EACH: tuple[Query, ...] = (
    Mean(columns=(Ranged(column="age", low=0, high=10),)),
    Histogram(column="age", low=0, high=10, bins=4),
    Quantile(column="age", levels=(0.5,), low=0, high=10),
    Count(column="age", values=(1, 2.5, "7")),
    HeavyHitters(column="age", threshold=2, length=3),
)


def union(parts: Sequence[Sequence[float]]) -> np.ndarray:
    return np.concatenate([np.array(part, np.float32) for part in parts]).astype(np.float64)


def test_every_kind_is_there() -> None:
    assert list(KINDS) == ["count", "heavy-hitters", "histogram", "mean", "quantile"]
    assert {type(query) for query in ONE_OF_EACH} == set(KINDS.values())


@pytest.mark.parametrize("query", ONE_OF_EACH, ids=lambda query: type(query).__name__)
def test_queries_and_findings_survive_the_wire(query: Query) -> None:
    finding = found(query, [site([1, 2.5, 7]), site([7, 9])])

    assert msgspec.json.decode(msgspec.json.encode(query), type=AnyQuery) == query
    assert msgspec.json.decode(msgspec.json.encode(finding), type=AnyFinding) == finding
    assert finding.sites == (2,) * query.num_rounds
    assert finding.examples == 5
    assert all(len(row) == len(finding.headers) for row in finding.rows())


@pytest.mark.parametrize("query", ONE_OF_EACH, ids=lambda query: type(query).__name__)
def test_neither_the_order_of_sites_nor_how_examples_are_divided_shows(query: Query) -> None:
    parts = [[1.0, 2.5], [7.0], [9.0, 3.0, 7.0]]
    apart = found(query, [site(part) for part in parts])
    turned = found(query, [site(part[::-1]) for part in parts[::-1]])
    together = found(query, [site([age for part in parts for age in part])])

    assert apart == turned
    # Sums of powers are rounded to the ring once for each site.
    if not isinstance(query, Mean):
        assert list(apart.rows()) == list(together.rows())


@pytest.mark.parametrize("query", ONE_OF_EACH, ids=lambda query: type(query).__name__)
def test_a_site_adds_to_its_round_alone_and_writes_into_nothing(query: Query) -> None:
    table = query.blank()
    for array in table.values():
        array.flags.writeable = False

    added = query.answered(site([1, 7]), table)

    assert {name: x.shape for name, x in added.items()} == {n: x.shape for n, x in table.items()}
    assert added["sites"].tolist() == [1.0] + [0.0] * (query.num_rounds - 1)
    assert all(not x[1:].any() for x in added.values())
    assert all(np.abs(x).max() <= 2 for x in added.values())  # no entry above the examples


@given(SITES)
def test_means_and_variances_are_those_of_the_union_to_the_rings_precision(
    parts: list[list[float]],
) -> None:
    low, high = -500.0, 700.0
    query = Mean(columns=(Ranged(column=0, low=low, high=high), Ranged(column="y", low=-1, high=1)))
    values = union(parts)
    clipped = np.clip(values, low, high)

    finding = found(query, [site(part) for part in parts])

    assert isinstance(finding, MeanFinding)
    age, label = finding.columns
    # Half a unit of the ring's 40 bits for each site, and float64's own rounding.
    assert age.mean == pytest.approx(clipped.mean(), abs=600 * len(parts) * 2.0**-41 + 1e-9)
    assert age.variance == pytest.approx(clipped.var(), abs=600**2 * len(parts) * 2.0**-38 + 1e-6)
    assert (age.below, age.above) == ((values < low).sum(), (values > high).sum())
    assert (label.mean, label.variance) == (0.0, 0.0)


@given(SITES)
def test_a_histogram_is_numpys(parts: list[list[float]]) -> None:
    edges = (-500.0, -3.5, 0.0, 0.1, 700.0)
    values = union(parts)

    finding = found(Histogram(column="age", edges=edges), [site(part) for part in parts])

    assert isinstance(finding, HistogramFinding)
    assert list(finding.counts) == np.histogram(values, edges)[0].tolist()
    assert finding.below == (values < -500).sum()
    assert finding.above == (values > 700).sum()


def test_edges_belong_to_the_bin_above_and_the_last_to_the_last() -> None:
    finding = found(Histogram(column=0, low=0, high=4, bins=2), [site([-1, 0, 2, 4, 5])])

    assert isinstance(finding, HistogramFinding)
    assert (finding.below, finding.counts, finding.above) == (1, (1, 2), 1)


@settings(max_examples=60)
@given(
    SITES,
    st.lists(st.sampled_from([0.001, 0.07, 0.1, 0.25, 0.5, 0.7, 0.999]), min_size=1, max_size=3),
    st.integers(2, 9),
    st.integers(1, 6),
)
def test_a_quantile_is_within_its_stated_bound(
    parts: list[list[float]], levels: list[float], bins: int, rounds: int
) -> None:
    low, high = -600.0, 900.0
    query = Quantile(
        column="age", levels=tuple(levels), low=low, high=high, bins=bins, rounds=rounds
    )
    values = np.sort(np.clip(union(parts), low, high))

    finding = found(query, [site(part) for part in parts])

    assert isinstance(finding, QuantileFinding)
    bound = (high - low) / bins**rounds / 2
    for level, one in zip(levels, finding.levels, strict=True):
        rank = math.ceil(Fraction(str(level)) * len(values))
        true = values[rank - 1]
        assert one.low <= true <= one.high
        assert abs(one.value - true) <= bound * (1 + 1e-9)
        at_or_below = 0 if one.low == low else (values <= one.low).sum()
        assert one.at_or_below == (at_or_below, (values <= one.high).sum())
        assert one.at_or_below[0] < rank <= one.at_or_below[1]


@pytest.mark.parametrize("lost", [0, 1, 2])
def test_a_quantile_that_sites_left_midway_says_who_answered_and_what_lies_where(
    lost: int,
) -> None:
    query = Quantile(column="age", levels=(0.5,), low=0, high=64, bins=4)
    sites = [site([1, 2, 3]), site([30, 31]), site([60, 61, 62])]
    left = [one for number, one in enumerate(sites) if number != lost]

    finding = found(query, sites, left)

    assert isinstance(finding, QuantileFinding)
    assert (finding.sites, finding.examples) == ((3, 2, 2), 8 - len(sites[lost]))
    [one] = finding.levels
    values = union([part.numbers("age").tolist() for part in left])
    assert 16 <= one.low <= one.high <= 32  # where the median of all was found
    assert one.at_or_below == ((values <= one.low).sum(), (values <= one.high).sum())


def test_a_level_is_the_share_that_was_written() -> None:
    """0.1 in binary is a little more than a tenth, and the first of ten is the tenth of them."""
    query = Quantile(column="age", levels=(0.1,), low=0, high=16, bins=16)

    finding = found(query, [site(range(1, 11))])

    assert isinstance(finding, QuantileFinding)
    assert finding.levels[0].value == pytest.approx(1, abs=0.01)


def test_what_lies_on_a_bound_is_not_clipped() -> None:
    query = Mean(columns=(Ranged(column="age", low=1, high=3),))

    finding = found(query, [site([0, 1, 3, 4, 5])])

    assert isinstance(finding, MeanFinding)
    assert (finding.columns[0].below, finding.columns[0].above) == (1, 2)


def test_a_median_of_ten_thousand_is_found_in_three_rounds_to_a_millionth() -> None:
    rng = np.random.default_rng(5)
    ages = rng.normal(50, 10, 10_000).astype(np.float32)
    query = Quantile(column="age", levels=(0.5,), low=0, high=100, bins=128)

    finding = found(query, [site(part.tolist()) for part in np.array_split(ages, 7)])

    assert isinstance(finding, QuantileFinding)
    median = float(np.sort(ages)[4999])
    assert finding.levels[0].value == pytest.approx(median, abs=100 / 128**3 / 2)


@given(st.lists(st.lists(st.sampled_from([0, 1, 2.5, 7, -3]), min_size=1), min_size=1, max_size=4))
def test_counts_are_those_of_the_union(parts: list[list[float]]) -> None:
    values = [value for part in parts for value in part]

    finding = found(Count(column="age", values=(7, 2.5, 0)), [site(part) for part in parts])

    assert isinstance(finding, CountFinding)
    assert finding.counts == tuple(values.count(value) for value in (7, 2.5, 0))
    assert finding.others == len(values) - sum(finding.counts)


def test_labels_are_counted_by_what_they_are_called() -> None:
    sites = [
        site([0, 0, 0], [0, 1, 1], classes=("benign", "malignant")),
        site([0], [1], classes=("benign", "malignant")),
    ]

    finding = found(Count(column="y", values=("malignant", "unclear")), sites)

    assert isinstance(finding, CountFinding)
    assert (finding.counts, finding.others) == ((3, 0), 1)


TEXTS = ("a", "ab", "abc", "b", "zoë", "zo", "longer")


@settings(max_examples=60)
@given(
    st.lists(st.lists(st.integers(0, 6), min_size=1, max_size=12), min_size=1, max_size=4),
    st.integers(1, 5),
)
def test_heavy_hitters_are_all_values_above_the_threshold_and_no_other(
    parts: list[list[int]], threshold: int
) -> None:
    query = HeavyHitters(column="y", threshold=threshold, length=5)
    sites = [site([0] * len(part), part, classes=TEXTS) for part in parts]
    counts = Counter(TEXTS[code] for part in parts for code in part)
    longer = counts.pop("longer", 0)

    finding = found(query, sites)

    assert isinstance(finding, HeavyHittersFinding)
    expected = {text: n for text, n in counts.items() if n >= threshold}
    assert {one.value: one.count for one in finding.hitters} == expected
    assert [one.count for one in finding.hitters] == sorted(expected.values(), reverse=True)
    assert finding.longer == longer
    assert finding.examples == counts.total() + longer


def test_numbers_are_heavy_hitters_as_they_are_written() -> None:
    finding = found(HeavyHitters(column="age", threshold=2), [site([7, 0.1, -3]), site([7, 0.1])])

    assert isinstance(finding, HeavyHittersFinding)
    assert [(one.value, one.count) for one in finding.hitters] == [("0.1", 2), ("7", 2)]


def test_zero_has_no_sign() -> None:
    finding = found(Count(column="age", values=(0,)), [site([-0.0, -0.0]), site([0.0])])

    assert isinstance(finding, CountFinding)
    assert (finding.counts, finding.others) == ((3,), 0)


def test_where_nothing_is_frequent_nothing_is_found() -> None:
    finding = found(HeavyHitters(column="age", threshold=3), [site([1, 2]), site([3])])

    assert isinstance(finding, HeavyHittersFinding)
    assert finding.hitters == ()
    assert finding.examples == 3


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf], ids=str)
@pytest.mark.parametrize("query", ONE_OF_EACH, ids=lambda query: type(query).__name__)
def test_what_is_no_number_is_refused_where_it_lies(query: Query, bad: float) -> None:
    with pytest.raises(DataError, match="column `age` holds NaN or infinity"):
        query.answered(site([1, bad]), query.blank())


def test_a_mean_of_text_is_refused_with_what_can_be_asked() -> None:
    query = Mean(columns=(Ranged(column="y", low=0, high=1),))
    with pytest.raises(DataError, match="holds text, not numbers; ask for count"):
        query.answered(site([1], [0], classes=("benign", "malignant")), query.blank())


def test_whole_labels_are_numbers() -> None:
    query = Mean(columns=(Ranged(column="y", low=0, high=10),))

    finding = found(query, [site([0, 0], [0, 1], classes=(3, 8))])

    assert isinstance(finding, MeanFinding)
    assert finding.columns[0].mean == pytest.approx(5.5)


@pytest.mark.parametrize(
    ("column", "problem", "mend"),
    [
        ("agee", "there is no column `agee`", "did you mean `age`"),
        ("z", "there is no column `z`", "there are `age`, `weight`, `y`"),
        (2, "there is no feature 2, they are numbered from 0 to 1", "there are `age`"),
    ],
    ids=["nearly", "not at all", "number"],
)
def test_a_column_that_is_not_there_is_told_with_those_that_are(
    column: int | str, problem: str, mend: str
) -> None:
    known = Columns(("age", "weight"), 2, "y")

    assert known.problem(column) == problem
    assert mend in known.mend(column)
    with pytest.raises(DataError):
        known.position(column)


def test_columns_go_by_name_by_number_and_by_the_labels_name() -> None:
    known = Columns(("age", "weight"), 2, "readmitted")

    assert [known.position(c) for c in ("weight", 1, "readmitted")] == [1, 1, None]
    assert "or a feature's number below 64" in Columns((), 64, "y").mend("pixel")
