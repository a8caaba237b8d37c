"""From a job's ``data`` to files that every worker maps: each site's examples lie side by side.

The rows are written once: the central part, then of each site its training and its held-out
examples. So whatever a worker asks for is a slice of one memory-mapped file; nothing is copied.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import msgspec
import numpy as np

from workflows.data.datasets import BUNDLED
from workflows.data.examples import DataError, Examples
from workflows.data.labels import Class, Labels
from workflows.job import Partitioned
from workflows.seeds import derive

BLOCK_BYTES: Final = 4 << 20
SUFFIXES: Final = ("npz", "csv", "parquet")


class _Layout(msgspec.Struct, frozen=True):
    """What ``data.json`` says, which is written last."""

    sites: int
    central: int
    num_classes: int
    columns: tuple[str, ...]


class Prepared:
    """Data of all sites, mapped.

    Attributes:
        sites: Names, in order.
        num_classes: Different labels; 0 for real-valued targets.
        classes: What each class was called in the data; empty for targets.
        features: Shape of one example.
        columns: Names of the features; empty where they have none.
    """

    def __init__(self, folder: Path) -> None:
        layout = msgspec.json.decode((folder / "data.json").read_bytes(), type=_Layout)
        classes: list[Class] = msgspec.json.decode((folder / "classes.json").read_bytes())
        # As plain arrays, for a slice of numpy's memmap takes ten times as long.
        self._x = np.load(folder / "x.npy", mmap_mode="r").view(np.ndarray)
        self._y = np.load(folder / "y.npy", mmap_mode="r").view(np.ndarray)
        self._bounds = np.load(folder / "bounds.npy")
        self._central = layout.central
        self.sites = site_names(layout.sites)
        self.num_classes = layout.num_classes
        self.classes = tuple(classes)
        self.columns = layout.columns
        self.features: tuple[int, ...] = self._x.shape[1:]
        self._at = {site: k for k, site in enumerate(self.sites)}

    def training(self, site: str) -> Examples:
        """What ``site`` trains on; never empty."""
        start, split, _ = self._bounds[self._at[site]]
        return Examples(self._x[start:split], self._y[start:split])

    def held_out(self, site: str) -> Examples:
        """What ``site`` keeps from training; may be empty."""
        _, split, stop = self._bounds[self._at[site]]
        return Examples(self._x[split:stop], self._y[split:stop])

    def central(self) -> Examples:
        """What no site has; may be empty."""
        return Examples(self._x[: self._central], self._y[: self._central])


def site_names(sites: int) -> tuple[str, ...]:
    """Names of simulated sites, padded so that they sort as they count."""
    width = max(4, len(str(sites)))
    return tuple(f"site-{k:0{width}}" for k in range(1, sites + 1))


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
    order, bounds, num_central = divide(labels.y, data)
    _write_rows(x, order, folder / "x.npy")
    np.save(folder / "y.npy", labels.y[order])
    np.save(folder / "bounds.npy", bounds)
    (folder / "classes.json").write_bytes(msgspec.json.encode(labels.classes))
    layout = _Layout(
        sites=data.sites,
        central=num_central,
        num_classes=len(labels.classes),
        columns=columns,
    )
    (folder / "data.json").write_bytes(msgspec.json.encode(layout))
    scratch.unlink(missing_ok=True)


def open_prepared(folder: Path) -> Prepared:
    """Map what ``prepare`` wrote."""
    return Prepared(folder)


def divide(y: np.ndarray, data: Partitioned) -> tuple[np.ndarray, np.ndarray, int]:
    """Which row goes where.

    Returns:
        Order of the rows; per site where its training part starts, where its held-out part starts
        and where that ends; size of the central part, which comes first.

    Raises:
        PartitionError: There are too few examples.
    """
    shuffled = np.random.default_rng(derive(data.seed, "central")).permutation(len(y))
    num_central = round(data.central * len(y))
    central, rest = np.sort(shuffled[:num_central]), np.sort(shuffled[num_central:])
    rng = np.random.default_rng(derive(data.seed, "partition"))
    parts = data.partitioner.split(y[rest], data.sites, rng)
    order, bounds, start = [central], np.empty((data.sites, 3), np.int64), num_central
    for k, part in enumerate(parts):
        rng = np.random.default_rng(derive(data.seed, "holdout", k + 1))
        num_training = len(part) - min(int(data.holdout * len(part)), len(part) - 1)
        order.append(rest[rng.permutation(part)])
        bounds[k] = start, start + num_training, start + len(part)
        start += len(part)
    return np.concatenate(order), bounds, num_central


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
