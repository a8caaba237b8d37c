"""The fixed-point ring in which updates are summed exactly.

A value x becomes the integer round(x * 2**fraction_bits), a weight is an integer, a sum is int64.
Integer addition is associative, so a sum does not depend on order, shards, workers or runtime; and
``Ring.check`` proves beforehand that no sum of the job can wrap.

Source: fixed-point secure aggregation, Bonawitz et al., CCS 2017, section 4.1 (there modulo R;
here the ring is 64 bits wide and the proof makes sure that the modulus is never reached).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Final

import msgspec
import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from strategies.update import Array, ModelUpdate

WIDTH_BITS: Final = 63  # of int64, without its sign


class RingTooSmall(Exception):
    """A sum of the job could wrap around in the ring."""


class Ring(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Scale and range of exact sums.

    Attributes:
        fraction_bits: Bits after the binary point; the resolution is 2**-fraction_bits.
        magnitude: Largest absolute value that one entry of an update may have, in units of the
            model's parameters.
        max_weight: Largest weight (number of examples) that one site may have.
    """

    fraction_bits: Annotated[int, Meta(ge=1, le=40)] = 24
    magnitude: Annotated[float, Meta(gt=0)] = 64.0
    max_weight: Annotated[int, Meta(ge=1)] = 1 << 20

    def check(self, cohort: int) -> None:
        """Prove that no sum over ``cohort`` updates can wrap.

        Raises:
            RingTooSmall: It could.
        """
        raise NotImplementedError

    def encode(
        self, update: ModelUpdate, shapes: Mapping[str, tuple[int, ...]]
    ) -> dict[str, NDArray[np.int64]]:
        """Entries of the update in the ring, after checking it whole against ``shapes``.

        Raises:
            Incompatible: Layers, shapes or dtypes differ.
            NotFinite: A value is NaN or infinite.
            OutOfRing: A value exceeds ``magnitude`` or the weight is not in 1..``max_weight``.
        """
        raise NotImplementedError

    def decode(self, total: NDArray[np.int64], weight: int) -> Array:
        """The mean that a weighted sum stands for, in float64."""
        raise NotImplementedError
