"""Sites that are drawn when they are asked: what each has, and that nothing lists them."""

from __future__ import annotations

import tracemalloc
from collections import Counter
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from workflows.data.preparation import Prepared, open_prepared, prepare, site_names
from workflows.data.virtual import Alike, SiteNames, Virtual
from workflows.job import Partitioned
from workflows.selection import AnySelection, Drawing, Uniform
from workflows.selection.poisson import Poisson
from workflows.workbench import some_samples

MILLION = 1_000_000


def virtual(
    folder: Path, sites: int = MILLION, dataset: str = "digits", alpha: float | None = None
) -> Prepared:
    data = Partitioned(
        dataset=dataset,
        sites=sites,
        partitioner=Virtual(examples=20, alpha=alpha),
        central=0.1,
        seed=5,
    )
    prepare(data, folder, folder / "data")
    return open_prepared(folder / "data")


def test_a_site_draws_the_same_whoever_asks_and_another_draws_others(tmp_path: Path) -> None:
    one, other = virtual(tmp_path / "one"), virtual(tmp_path / "other")

    for site in ("site-0000001", "site-0777777", "site-1000000"):
        mine, theirs = one.training(site), other.training(site)
        assert (mine.x == theirs.x).all()
        assert (mine.y == theirs.y).all()
        assert len(mine) == one.num_examples == 16
        assert len(one.held_out(site)) == 4

    assert (one.training("site-0000001").x != one.training("site-0000002").x).any()


def test_what_a_site_draws_are_examples_outside_the_central_part(tmp_path: Path) -> None:
    found = virtual(tmp_path)
    central = {row.tobytes() for row in found.central().x}
    from sklearn.datasets import load_digits

    pool = load_digits()
    labels = {
        (x / 16).astype(np.float32).tobytes(): y
        for x, y in zip(pool.data, pool.target, strict=True)
    }

    for site in islice(found.sites, 200):
        drawn = found.training(site)
        assert all(labels[x.tobytes()] == y for x, y in zip(drawn.x, drawn.y, strict=True))
        assert not central & {x.tobytes() for x in drawn.x}


def test_a_small_alpha_is_skewed_a_large_one_and_none_are_not(tmp_path: Path) -> None:
    def largest_share(alpha: float | None) -> float:
        found = virtual(tmp_path / str(alpha), alpha=alpha)
        parts = [found.training(site).y.tolist() for site in islice(found.sites, 100)]
        return float(np.mean([max(Counter(part).values()) / len(part) for part in parts]))

    assert largest_share(0.05) > 0.8
    assert largest_share(1e5) < 0.35
    assert largest_share(None) < 0.35


def test_on_average_sites_have_the_classes_of_the_pool() -> None:
    starts = np.array([100, 130, 200, 300])
    for alpha in (None, 0.5):
        drawn = np.concatenate(
            [Virtual(alpha=alpha).draw(starts, np.random.default_rng(k)) for k in range(3000)]
        )
        shares = np.histogram(drawn, starts)[0] / len(drawn)
        np.testing.assert_allclose(shares, [0.15, 0.35, 0.5], atol=0.02)


def test_targets_that_are_real_are_skewed_by_decile(tmp_path: Path) -> None:
    found = virtual(tmp_path, dataset="diabetes", alpha=0.01)

    spreads = [np.ptp(found.training(site).y) for site in islice(found.sites, 50)]

    assert np.median(spreads) < np.ptp(found.central().y) / 2


@given(st.integers(1, 12_000))
def test_names_are_those_of_a_list(sites: int) -> None:
    names, listed = SiteNames(sites), site_names(sites)

    assert len(names) == len(listed) == sites
    assert tuple(names) == listed == tuple(sorted(listed))
    assert names[sites - 1] == names[-1] == listed[-1]
    assert names[1:3] == listed[1:3]
    assert names.index(listed[sites // 2]) == sites // 2


@pytest.mark.parametrize("name", ["site-0", "site-0000", "site-0011", "site-00001", "site-x", "a"])
def test_other_names_are_none_of_them(name: str) -> None:
    names = SiteNames(10)

    assert name not in names
    with pytest.raises(ValueError, match="there is no"):
        names.index(name)
    with pytest.raises(KeyError):
        Alike(names, 3)[name]


@pytest.mark.parametrize("selection", [Uniform(), Poisson()], ids=["uniform", "poisson"])
def test_a_draw_of_few_of_many_is_that_of_a_list_and_takes_no_memory_for_the_rest(
    selection: AnySelection,
) -> None:
    names = SiteNames(MILLION)
    alike = Alike(names, 16)

    def drawn(round_: int) -> tuple[str, ...]:
        drawing = Drawing(sites=names, size=1000, round=round_, seed=3, num_examples=alike)
        return selection.draw(drawing).sites

    drawn(1)
    tracemalloc.start()
    sites = drawn(2)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    rng = Drawing(sites=names, size=1000, round=2, seed=3).rng()
    places = (
        np.sort(rng.choice(MILLION, 1000, replace=False))
        if isinstance(selection, Uniform)
        else np.flatnonzero(rng.integers(MILLION, size=MILLION) < 1000)
    )
    assert sites == tuple(names[int(k)] for k in places)
    assert peak < 2 << 20
    assert selection.scales


def test_samples_to_show_a_model_are_found_without_a_walk_over_all(tmp_path: Path) -> None:
    found = virtual(tmp_path)

    assert len(some_samples(found, 500)) == 500
