from __future__ import annotations

from itertools import chain

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from workflows.data.examples import PartitionError
from workflows.data.partitioners import AnyPartitioner, ByLabel, Dirichlet, Iid, PowerLaw

PARTITIONERS = st.one_of(
    st.just(Iid()),
    st.builds(Dirichlet, alpha=st.floats(1e-3, 1e3), minimum=st.integers(min_value=1, max_value=4)),
    st.builds(ByLabel, shards_per_site=st.integers(1, 4)),
    st.builds(PowerLaw, exponent=st.floats(0, 10)),
)
LABELS = st.one_of(
    st.lists(st.integers(0, 9), min_size=40, max_size=120).map(lambda y: np.array(y, np.int64)),
    st.lists(st.floats(-9, 9, width=32), min_size=40, max_size=120).map(
        lambda y: np.array(y, np.float32)
    ),
)


def split(partitioner: AnyPartitioner, y: np.ndarray, sites: int, seed: int = 0) -> list[list[int]]:
    parts = partitioner.split(y, sites, np.random.default_rng(seed))
    assert all(part.dtype == np.int64 for part in parts)
    return [part.tolist() for part in parts]


@given(PARTITIONERS, LABELS, st.integers(1, 10), st.integers(0, 99))
def test_every_example_is_at_one_site_and_none_is_empty(
    partitioner: AnyPartitioner, y: np.ndarray, sites: int, seed: int
) -> None:
    before = y.copy()

    parts = split(partitioner, y, sites, seed)

    assert len(parts) == sites
    assert sorted(chain.from_iterable(parts)) == list(range(len(y)))
    assert all(part and part == sorted(part) for part in parts)
    assert parts == split(partitioner, y, sites, seed)
    assert (y == before).all()


@given(st.integers(1, 4), st.floats(1e-3, 1), st.integers(0, 99))
def test_no_dirichlet_site_is_below_the_minimum(minimum: int, alpha: float, seed: int) -> None:
    y = np.arange(40) % 3

    parts = split(Dirichlet(alpha=alpha, minimum=minimum), y, 10, seed)

    assert min(map(len, parts)) >= minimum


def test_a_small_alpha_is_skewed_and_a_large_one_even() -> None:
    y = np.repeat(np.arange(10), 200)

    def classes_per_site(alpha: float) -> float:
        parts = split(Dirichlet(alpha=alpha), y, 10)
        return float(np.mean([len(np.unique(y[part])) for part in parts]))

    def spread(alpha: float) -> int:
        sizes = [len(part) for part in split(Dirichlet(alpha=alpha), y, 10)]
        return max(sizes) - min(sizes)

    assert classes_per_site(0.05) < 5
    assert classes_per_site(100.0) == 10
    assert spread(0.05) > 200 > spread(1000.0)


def test_shards_show_a_site_few_labels() -> None:
    y = np.repeat(np.arange(10), 60)

    parts = split(ByLabel(shards_per_site=2), y, 10)

    assert all(len(np.unique(y[part])) <= 2 for part in parts)
    assert all(len(part) == 60 for part in parts)


def test_sizes_of_a_power_law_are_those_of_the_formula() -> None:
    sizes = [len(part) for part in split(PowerLaw(exponent=1.0), np.zeros(1010, int), 10)]

    harmonic = sum(1 / k for k in range(1, 11))
    assert sizes == pytest.approx([1 + 1000 / k / harmonic for k in range(1, 11)], abs=1)


def test_iid_sizes_differ_by_at_most_one() -> None:
    assert sorted(len(part) for part in split(Iid(), np.zeros(23, int), 5)) == [4, 4, 5, 5, 5]


@pytest.mark.parametrize(
    ("partitioner", "most"),
    [(Iid(), 9), (Dirichlet(minimum=3), 3), (ByLabel(shards_per_site=2), 4), (PowerLaw(), 9)],
    ids=str,
)
def test_too_many_sites_are_refused_with_how_many_would_do(
    partitioner: AnyPartitioner, most: int
) -> None:
    with pytest.raises(PartitionError, match=f"at most {most} sites"):
        split(partitioner, np.arange(9) % 2, 10)

    assert len(split(partitioner, np.arange(9) % 2, most)) == most


@pytest.mark.parametrize(
    ("partitioner", "document"),
    [
        (Iid(), {"kind": "iid"}),
        (Dirichlet(alpha=0.1), {"kind": "dirichlet", "alpha": 0.1, "minimum": 1}),
        (ByLabel(), {"kind": "label-shards", "shards_per_site": 2}),
        (PowerLaw(), {"kind": "power-law", "exponent": 1.5}),
    ],
)
def test_a_partitioner_is_its_document(partitioner: AnyPartitioner, document: object) -> None:
    assert msgspec.to_builtins(partitioner) == document
    assert msgspec.convert(document, AnyPartitioner) == partitioner
