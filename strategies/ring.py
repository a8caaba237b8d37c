"""The fixed-point ring in which updates are summed exactly.

A value x becomes the integer round(x * 2**fraction_bits), halves to even; a weight is an integer, a
sum is int64. Integer addition is associative, so a sum does not depend on order, shards, workers or
runtime; and ``Ring.check`` proves beforehand that no sum of the job can wrap.

Source: fixed-point secure aggregation, Bonawitz et al., CCS 2017, section 4.1 (there modulo R;
here the ring is 64 bits wide and the proof makes sure that the modulus is never reached).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from fractions import Fraction
from math import ceil, isfinite
from typing import Annotated, Any, Final

import msgspec
import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from strategies.update import Array, Incompatible, ModelUpdate, NotFinite, OutOfRing

WIDTH_BITS: Final = 63  # of int64, without its sign
TILE: Final = 1 << 16  # entries worked on at a time, so that temporaries stay in the cache
ENTRY_BITS: Final = 51
ROUNDER: Final = 1.5 * 2.0**52
"""Added to a float64 below 2**51, it rounds it to an integer (halves to even) and leaves that
integer, in two's complement, in the low bits: three times faster than a conversion."""
ROUNDER_BITS: Final = int(np.float64(ROUNDER).view(np.int64))


class RingTooSmall(Exception):
    """A sum of the job could wrap around in the ring.

    Attributes:
        problem: By how much.
        mend: What to change.
    """

    def __init__(self, problem: str, mend: str) -> None:
        super().__init__(f"{problem}; {mend}")
        self.problem = problem
        self.mend = mend


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

    def __post_init__(self) -> None:
        # Written so that NaN fails too.
        if not self.magnitude * self.scale <= 2.0**ENTRY_BITS:
            raise ValueError(
                f"magnitude {self.magnitude:g} * 2**fraction_bits {self.fraction_bits} must not "
                f"exceed 2**{ENTRY_BITS}; lower one of them"
            )

    @property
    def scale(self) -> float:
        """What values are multiplied by: a power of two, so the product is exact."""
        return float(1 << self.fraction_bits)

    def check(self, cohort: int) -> None:
        """Prove that no sum over ``cohort`` updates can wrap.

        Raises:
            RingTooSmall: It could.
        """
        entry = ceil(Fraction(self.magnitude) * (1 << self.fraction_bits))
        largest = entry * self.max_weight * cohort
        if largest >> WIDTH_BITS:
            excess = largest.bit_length() - WIDTH_BITS
            raise RingTooSmall(
                f"a sum of {cohort} updates may need {excess} bits more than the {WIDTH_BITS} "
                f"there are: magnitude {self.magnitude:g} * 2**fraction_bits {self.fraction_bits} "
                f"* max_weight {self.max_weight} * cohort {cohort}",
                f"lower fraction_bits by {excess}, or divide magnitude, max_weight or the cohort "
                f"by {1 << excess}",
            )

    def require(self, update: ModelUpdate, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Check ``update`` whole against the ring and the model's ``shapes``.

        Raises:
            Incompatible: Layers, shapes or dtypes differ.
            NotFinite: A value is NaN or infinite.
            OutOfRing: A value exceeds ``magnitude`` or the weight is not in 1..``max_weight``.
        """
        if not 1 <= update.num_examples <= self.max_weight:
            reason = f"weight {update.num_examples} is not in 1..{self.max_weight}"
            raise OutOfRing(update.site, reason)
        if update.delta.keys() != shapes.keys():
            differing = sorted(update.delta.keys() ^ shapes.keys())
            raise Incompatible(update.site, f"layers missing or unknown: {', '.join(differing)}")
        for name, shape in shapes.items():
            self._require_layer(update.site, name, update.delta[name], shape)

    def encode(
        self, update: ModelUpdate, shapes: Mapping[str, tuple[int, ...]]
    ) -> dict[str, NDArray[np.int64]]:
        """Entries of the update in the ring, after checking it whole against ``shapes``.

        Raises:
            Incompatible: Layers, shapes or dtypes differ.
            NotFinite: A value is NaN or infinite.
            OutOfRing: A value exceeds ``magnitude`` or the weight is not in 1..``max_weight``.
        """
        self.require(update, shapes)
        encoded = {name: np.zeros(shape, np.int64) for name, shape in shapes.items()}
        self._add(update, 1, encoded)
        return encoded

    def add(self, update: ModelUpdate, sums: Mapping[str, NDArray[np.int64]]) -> None:
        """Add the update, times its weight, to ``sums`` in place; on an error they are untouched.

        Raises:
            Incompatible: Layers, shapes or dtypes differ.
            NotFinite: A value is NaN or infinite.
            OutOfRing: A value exceeds ``magnitude`` or the weight is not in 1..``max_weight``.
        """
        self.require(update, {name: total.shape for name, total in sums.items()})
        self._add(update, update.num_examples, sums)

    def decode(self, total: NDArray[np.int64], weight: int) -> Array:
        """The mean that a weighted sum stands for, in float64."""
        return np.true_divide(total, weight) / self.scale

    def _require_layer(self, site: str, name: str, x: Array, shape: tuple[int, ...]) -> None:
        if x.shape != shape:
            raise Incompatible(site, f"layer {name} has shape {x.shape}, not {shape}")
        if x.dtype.kind != "f" or x.dtype.itemsize > 8:
            raise Incompatible(site, f"layer {name} holds {x.dtype}, not float16, 32 or 64")
        for (tile,) in _tiles(x):
            low, high = float(tile.min()), float(tile.max())
            if not (isfinite(low) and isfinite(high)):
                raise NotFinite(site, f"layer {name} holds NaN or infinity")
            if max(-low, high) > self.magnitude:
                reason = f"layer {name} holds {max(-low, high):g}, beyond {self.magnitude:g}"
                raise OutOfRing(site, reason)

    def _add(self, update: ModelUpdate, weight: int, sums: Mapping[str, NDArray[np.int64]]) -> None:
        largest = max((total.size for total in sums.values()), default=0)
        scaled = np.empty(min(TILE, largest))
        for name, total in sums.items():
            for x, part in _tiles(update.delta[name], total):
                rounded = scaled[: x.size]
                np.copyto(rounded, x)  # before it is scaled: float16 would overflow
                np.multiply(rounded, self.scale, out=rounded)
                np.add(rounded, ROUNDER, out=rounded)
                q = rounded.view(np.int64)
                np.subtract(q, ROUNDER_BITS, out=q)
                np.multiply(q, weight, out=q)
                np.add(part, q, out=part)


def _tiles(*arrays: NDArray[Any]) -> Iterator[tuple[NDArray[Any], ...]]:
    """The arrays side by side, as flat runs of ``TILE`` entries in row order."""
    flat = [x.reshape(-1) for x in arrays]
    for start in range(0, flat[0].size, TILE):
        yield tuple(x[start : start + TILE] for x in flat)
