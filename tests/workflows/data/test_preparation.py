from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sklearn import datasets

from workflows.data.datasets import BUNDLED
from workflows.data.examples import DataError, PartitionError
from workflows.data.partitioners import Dirichlet, Iid
from workflows.data.preparation import Prepared, bundled, open_prepared, prepare
from workflows.job import Partitioned


def prepared(tmp_path: Path, data: Partitioned, **arrays: np.ndarray) -> Prepared:
    inputs = tmp_path / "inputs"
    inputs.mkdir(parents=True, exist_ok=True)
    if arrays:
        np.savez(inputs / "dataset.npz", **arrays)  # type: ignore[arg-type]
    prepare(data, inputs, tmp_path / "data")
    return open_prepared(tmp_path / "data")


def numbered(count: int) -> dict[str, np.ndarray]:
    """Examples that carry their own number."""
    return {"x": np.arange(count, dtype=np.float32)[:, None], "y": np.arange(count) % 3}


def numbers(x: np.ndarray) -> list[int]:
    return [int(value) for value in x[:, 0]]


@pytest.mark.parametrize("name", BUNDLED)
def test_the_constant_facts_of_a_bundled_set_are_its_facts(name: str) -> None:
    x, labels = bundled(name)
    facts = BUNDLED[name]

    assert (facts.num_examples, facts.features) == (len(x), x.shape[1:])
    assert facts.num_classes == len(labels.classes)


@pytest.mark.parametrize("name", set(BUNDLED) - {"digits"})
def test_columns_of_a_bundled_set_are_called_as_in_their_source(tmp_path: Path, name: str) -> None:
    source = getattr(datasets, f"load_{name.replace('-', '_')}")()

    found = prepared(tmp_path, Partitioned(dataset=name, sites=2))

    assert found.columns == BUNDLED[name].columns == tuple(map(str, source.feature_names))


def test_there_are_five_bundled_sets() -> None:
    assert sorted(BUNDLED) == ["breast-cancer", "diabetes", "digits", "iris", "wine"]


@pytest.mark.parametrize("holdout", [0.0, 0.2, 0.99])
@pytest.mark.parametrize("central", [0.0, 0.25])
def test_every_example_is_in_one_place(tmp_path: Path, holdout: float, central: float) -> None:
    data = Partitioned(
        dataset="mine", sites=7, partitioner=Dirichlet(alpha=0.3), holdout=holdout, central=central
    )

    found = prepared(tmp_path, data, **numbered(100))

    training = [numbers(found.training(site).x) for site in found.sites]
    held_out = [numbers(found.held_out(site).x) for site in found.sites]
    middle = numbers(found.central().x)
    assert sorted(sum(training + held_out, middle)) == list(range(100))
    assert all(training)
    assert len(middle) == 100 * central
    for mine, kept in zip(training, held_out, strict=True):
        assert len(kept) == min(int(holdout * (len(mine) + len(kept))), len(mine) + len(kept) - 1)
    for site in found.sites:
        part = found.training(site)
        assert part.y.tolist() == [number % 3 for number in numbers(part.x)]


def test_the_same_data_gives_the_same_bytes_and_another_seed_others(tmp_path: Path) -> None:
    def content(folder: str, seed: int) -> dict[str, bytes]:
        data = Partitioned(dataset="iris", sites=4, seed=seed, central=0.1)
        prepared(tmp_path / folder, data)
        return {p.name: p.read_bytes() for p in (tmp_path / folder / "data").iterdir()}

    first = content("first", 1)

    assert first == content("again", 1)
    assert first["x.npy"] != content("other", 2)["x.npy"]
    assert set(first) == {"x.npy", "y.npy", "bounds.npy", "classes.json", "data.json"}


def test_sites_have_views_of_one_file(tmp_path: Path) -> None:
    found = prepared(tmp_path, Partitioned(dataset="digits", sites=3, central=0.1))

    parts = [found.central(), *(found.training(site) for site in found.sites)]

    assert found.sites == ("site-0001", "site-0002", "site-0003")
    assert (found.features, found.num_classes) == ((64,), 10)
    assert all(isinstance(part.x.base.base, np.memmap) for part in parts)
    assert all(not part.x.flags.writeable for part in parts)
    assert parts[0].x.dtype == np.float32
    assert parts[0].y.dtype == np.int64
    assert 0 <= parts[0].x.min() < parts[0].x.max() == 1


def test_real_valued_targets_have_no_classes(tmp_path: Path) -> None:
    found = prepared(tmp_path, Partitioned(dataset="diabetes", sites=3))

    assert (found.num_classes, found.classes) == (0, ())
    assert found.training("site-0001").y.dtype == np.float32


def test_labels_of_text_are_numbered_in_order_and_remembered(tmp_path: Path) -> None:
    y = np.array(["pear", "apple", "pear", "fig"] * 3)
    data = Partitioned(dataset="mine", label="fruit", sites=2, holdout=0, partitioner=Iid())

    found = prepared(tmp_path, data, x=np.arange(12.0)[:, None], fruit=y)

    assert found.classes == ("apple", "fig", "pear")
    for site in found.sites:
        part = found.training(site)
        assert [found.classes[k] for k in part.y] == [y[k] for k in numbers(part.x)]


def test_many_sites_keep_names_that_sort(tmp_path: Path) -> None:
    data = Partitioned(dataset="mine", sites=12_000, holdout=0, partitioner=Iid())

    found = prepared(tmp_path, data, **numbered(12_000))

    assert found.sites[0] == "site-00001"
    assert list(found.sites) == sorted(found.sites)
    assert len(found.training("site-12000")) == 1


def test_more_sites_than_samples_are_refused(tmp_path: Path) -> None:
    with pytest.raises(PartitionError, match="at most 75 sites"):
        prepared(tmp_path, Partitioned(dataset="mine", sites=90, central=0.25), **numbered(100))


def test_a_missing_upload_is_said_to_be_missing(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="upload it first"):
        prepared(tmp_path, Partitioned(dataset="mine"))
