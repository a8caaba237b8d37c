"""Labelled examples as two arrays of equal length, and what can be wrong with data."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


class DataError(Exception):
    """The data cannot be used as it is; the message names the place and the mend."""


class PartitionError(DataError):
    """The examples cannot be divided as asked."""


class Unreadable(DataError):
    """The file is not what its name or its job says, or holds what is no number."""


class LabelMissing(DataError):
    """No column or array has the name that the job gives for the labels."""


@dataclass(frozen=True, slots=True, eq=False)
class Examples:
    """Some examples. The arrays are views into a memory-mapped file wherever that can be.

    Attributes:
        x: Features, float32, shaped (examples, *features).
        y: Classes as int64 from 0, or real-valued targets as float32; shaped (examples,).
    """

    x: np.ndarray
    y: np.ndarray

    def __len__(self) -> int:
        return len(self.y)
