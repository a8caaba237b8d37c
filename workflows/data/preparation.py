"""From a job's ``data`` to files that every worker maps: each site's examples lie side by side.

The rows are written once: the central part, then of each site its training and its held-out
examples. So whatever a worker asks for is a slice of one memory-mapped file; nothing is copied.
Virtual sites copy the few rows that they draw, when they are asked.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec
import numpy as np

from workflows.data.datasets import BUNDLED
from workflows.data.examples import DataError, Examples, PartitionError
from workflows.data.labels import Class, Labels
from workflows.data.partitioners import strata_of
from workflows.data.virtual import SiteNames, Virtual
from workflows.job import Partitioned
from workflows.seeds import derive

BLOCK_BYTES: Final = 4 << 20
SUFFIXES: Final = ("npz", "csv", "parquet")


class _Layout(msgspec.Struct, frozen=True, omit_defaults=True):
    """What ``data.json`` says, which is written last."""

    sites: int
    central: int
    num_classes: int
    columns: tuple[str, ...]
    virtual: Virtual | None = None
    holdout: float = 0.0
    seed: int = 0


class Prepared:
    """Data of all sites, mapped; no kind of its own.

    Attributes:
        num_classes: Different labels; 0 for real-valued targets.
        classes: What each class was called in the data; empty for targets.
        features: Shape of one example.
        columns: Names of the features; empty where they have none.
    """

    def __init__(self, folder: Path, layout: _Layout) -> None:
        classes: list[Class] = msgspec.json.decode((folder / "classes.json").read_bytes())
        # As plain arrays, for a slice of numpy's memmap takes ten times as long.
        self._x = np.load(folder / "x.npy", mmap_mode="r").view(np.ndarray)
        self._y = np.load(folder / "y.npy", mmap_mode="r").view(np.ndarray)
        self._bounds = np.load(folder / "bounds.npy")
        self._central = layout.central
        self.num_classes = layout.num_classes
        self.classes = tuple(classes)
        self.columns = layout.columns
        self.features: tuple[int, ...] = self._x.shape[1:]

    @property
    def sites(self) -> Sequence[str]:
        """Names, in order."""
        raise NotImplementedError

    @property
    def num_examples(self) -> tuple[int, ...] | int:
        """What each site trains on, in their order; one number where all have as many."""
        raise NotImplementedError

    def training(self, site: str) -> Examples:
        """What ``site`` trains on; never empty."""
        raise NotImplementedError

    def held_out(self, site: str) -> Examples:
        """What ``site`` keeps from training; may be empty."""
        raise NotImplementedError

    def central(self) -> Examples:
        """What no site has; may be empty."""
        return Examples(self._x[: self._central], self._y[: self._central])


class DividedSites(Prepared):
    """Sites among which the data were divided: each has rows of the file."""

    def __init__(self, folder: Path, layout: _Layout) -> None:
        super().__init__(folder, layout)
        self._sites = site_names(layout.sites)
        self._at = {site: k for k, site in enumerate(self._sites)}

    @property
    def sites(self) -> Sequence[str]:
        return self._sites

    @property
    def num_examples(self) -> tuple[int, ...] | int:
        return tuple((self._bounds[:, 1] - self._bounds[:, 0]).tolist())

    def training(self, site: str) -> Examples:
        start, split, _ = self._bounds[self._at[site]]
        return Examples(self._x[start:split], self._y[start:split])

    def held_out(self, site: str) -> Examples:
        _, split, stop = self._bounds[self._at[site]]
        return Examples(self._x[split:stop], self._y[split:stop])


class VirtualSites(Prepared):
    """Sites that draw copies of rows when they are asked; those held out are drawn last."""

    def __init__(self, folder: Path, layout: _Layout, virtual: Virtual) -> None:
        super().__init__(folder, layout)
        self._sites = SiteNames(layout.sites)
        self._virtual, self._seed = virtual, layout.seed
        self._num_training = virtual.examples - num_held_out(layout.holdout, virtual.examples)

    @property
    def sites(self) -> Sequence[str]:
        return self._sites

    @property
    def num_examples(self) -> tuple[int, ...] | int:
        return self._num_training

    def training(self, site: str) -> Examples:
        return self._rows(site, slice(None, self._num_training))

    def held_out(self, site: str) -> Examples:
        return self._rows(site, slice(self._num_training, None))

    def _rows(self, site: str, part: slice) -> Examples:
        seed = derive(self._seed, "virtual", self._sites.index(site) + 1)
        drawn = self._virtual.draw(self._bounds, np.random.default_rng(seed))[part]
        return Examples(self._x[drawn], self._y[drawn])


def site_names(sites: int) -> tuple[str, ...]:
    """Names of simulated sites, padded so that they sort as they count."""
    return SiteNames(sites)[:]


def prepare(data: Partitioned, inputs: Path, folder: Path) -> None:
    """Read the data set, divide it and write it to ``folder``; the same data gives the same bytes.

    Args:
        data: What and how.
        inputs: Folder with ``dataset.npz``, ``.csv`` or ``.parquet``, unless it is bundled.
        folder: Where to; made if absent.

    Raises:
        DataError: The data cannot be used, or not be divided so.
    """
    folder.mkdir(parents=True, exist_ok=True)
    scratch = folder / "rows"
    if data.dataset in BUNDLED:
        x, labels = bundled(data.dataset)
        columns = BUNDLED[data.dataset].columns
    else:
        from workflows.data.files import read_table  # pyarrow is slow to import

        table = read_table(_uploaded(inputs), data.label, scratch)
        x, labels, columns = table.x, table.labels, table.columns
    virtual = data.partitioner if isinstance(data.partitioner, Virtual) else None
    lay_out = divide if virtual is None else pool
    order, bounds, num_central = lay_out(labels.y, data)
    _write_rows(x, order, folder / "x.npy")
    np.save(folder / "y.npy", labels.y[order])
    np.save(folder / "bounds.npy", bounds)
    (folder / "classes.json").write_bytes(msgspec.json.encode(labels.classes))
    layout = _Layout(
        sites=data.sites,
        central=num_central,
        num_classes=len(labels.classes),
        columns=columns,
        virtual=virtual,
        holdout=data.holdout if virtual else 0.0,
        seed=data.seed if virtual else 0,
    )
    (folder / "data.json").write_bytes(msgspec.json.encode(layout))
    scratch.unlink(missing_ok=True)


def open_prepared(folder: Path) -> Prepared:
    """Map what ``prepare`` wrote."""
    layout = msgspec.json.decode((folder / "data.json").read_bytes(), type=_Layout)
    if layout.virtual is not None:
        return VirtualSites(folder, layout, layout.virtual)
    return DividedSites(folder, layout)


def divide(y: np.ndarray, data: Partitioned) -> tuple[np.ndarray, np.ndarray, int]:
    """Which row goes where.

    Returns:
        Order of the rows; per site where its training part starts, where its held-out part starts
        and where that ends; size of the central part, which comes first.

    Raises:
        PartitionError: There are too few examples.
    """
    central, rest = _set_aside(len(y), data)
    rng = np.random.default_rng(derive(data.seed, "partition"))
    if isinstance(data.partitioner, Virtual):
        raise TypeError("virtual sites divide nothing")
    parts = data.partitioner.split(y[rest], data.sites, rng)
    order, bounds, start = [central], np.empty((data.sites, 3), np.int64), len(central)
    for k, part in enumerate(parts):
        rng = np.random.default_rng(derive(data.seed, "holdout", k + 1))
        num_training = len(part) - num_held_out(data.holdout, len(part))
        order.append(rest[rng.permutation(part)])
        bounds[k] = start, start + num_training, start + len(part)
        start += len(part)
    return np.concatenate(order), bounds, len(central)


def pool(y: np.ndarray, data: Partitioned) -> tuple[np.ndarray, np.ndarray, int]:
    """Which row goes where, for sites that draw.

    Returns:
        Order of the rows: the central part, then all others by class; where each class starts,
        and where the last one ends; size of the central part.

    Raises:
        PartitionError: There is nothing to draw from.
    """
    central, rest = _set_aside(len(y), data)
    if not len(rest):
        raise PartitionError("no examples are left for the sites; lower data.central")
    strata = strata_of(y[rest])
    sizes = np.unique(strata, return_counts=True)[1]
    order = np.concatenate([central, rest[np.argsort(strata, kind="stable")]])
    return order, len(central) + np.cumsum([0, *sizes]), len(central)


def num_held_out(holdout: float, examples: int) -> int:
    """Of a site's ``examples``, how many it keeps from training; never all."""
    return min(int(holdout * examples), examples - 1)


def _set_aside(num_rows: int, data: Partitioned) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the central part, and all others."""
    shuffled = np.random.default_rng(derive(data.seed, "central")).permutation(num_rows)
    num_central = round(data.central * num_rows)
    return np.sort(shuffled[:num_central]), np.sort(shuffled[num_central:])


def bundled(name: str) -> tuple[np.ndarray, Labels]:
    """Features and labels of a bundled set."""
    from sklearn import datasets

    load = {
        "breast-cancer": datasets.load_breast_cancer,
        "diabetes": datasets.load_diabetes,
        "digits": datasets.load_digits,
        "iris": datasets.load_iris,
        "wine": datasets.load_wine,
    }[name]
    content = load()
    x = content.data.astype(np.float32)
    if name == "digits":
        x /= 16  # pixels are 0 to 16
    if not BUNDLED[name].num_classes:
        return x, Labels(content.target.astype(np.float32), ())
    classes = tuple(n if isinstance(n, str) else int(n) for n in content.target_names.tolist())
    return x, Labels(content.target.astype(np.int64), classes)


def _uploaded(inputs: Path) -> Path:
    for suffix in SUFFIXES:
        if (path := inputs / f"dataset.{suffix}").is_file():
            return path
    raise DataError("the data set is not among the inputs; upload it first")


def _write_rows(x: np.ndarray, order: np.ndarray, path: Path) -> None:
    """Write the rows of ``x`` in ``order``, some megabytes at a time."""
    out = np.lib.format.open_memmap(path, "w+", np.float32, (len(order), *x.shape[1:]))
    step = max(1, BLOCK_BYTES // max(1, x[:1].nbytes))
    for start in range(0, len(order), step):
        out[start : start + step] = x[order[start : start + step]]
    out.flush()
