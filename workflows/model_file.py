"""The global model on its way to the workers: raw arrays in a file that each of them maps."""

from __future__ import annotations

import mmap
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import msgspec
import numpy as np

from workflows.frames import ArraySpec, arrays_from, describe

ALIGN_BYTES: Final = 64


class ModelRef(msgspec.Struct, frozen=True):
    """A version of the global model.

    Attributes:
        path: Of the file.
        version: Differs between any two models of one pool.
        arrays: What lies in the file, in order, each at a multiple of 64 bytes.
    """

    path: str
    version: int
    arrays: tuple[ArraySpec, ...]


def lay_model(params: Mapping[str, np.ndarray], path: Path, version: int) -> ModelRef:
    """Write ``params`` to ``path``.

    Raises:
        OSError: The file could not be written.
    """
    specs, blobs = describe(params)
    with path.open("wb") as file:
        for blob in blobs:
            file.write(blob)
            file.write(bytes(-file.tell() % ALIGN_BYTES))
    return ModelRef(str(path), version, specs)


def map_model(ref: ModelRef) -> dict[str, np.ndarray]:
    """Read-only arrays over the file of a model; it may be deleted while they are in use."""
    with Path(ref.path).open("rb") as file:
        content = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    views, start = [], 0
    for spec in ref.arrays:
        stop = start + int(np.prod(spec.shape, dtype=np.int64)) * np.dtype(spec.dtype).itemsize
        views.append(content[start:stop])
        start = stop + -stop % ALIGN_BYTES
    return arrays_from(ref.arrays, views)
