"""The fixed-point ring in which updates are summed exactly.

A value x becomes the integer round(x * 2**fraction_bits), halves to even; a weight is an integer, a
sum is int64. Integer addition is associative, so a sum does not depend on order, shards, workers or
runtime; and ``Ring.check`` proves beforehand that no sum of the job can wrap.

Source: fixed-point secure aggregation, Bonawitz et al., CCS 2017, section 4.1 (there modulo R;
here the ring is 64 bits wide and the proof makes sure that the modulus is never reached).
"""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from itertools import chain
from math import ceil, isfinite
from typing import Annotated, Any, Final

import msgspec
import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from strategies import kernels
from strategies.tiles import Tile, each
from strategies.update import (
    Array,
    Incompatible,
    ModelUpdate,
    NotFinite,
    OutOfRing,
    UpdateRefused,
)

WIDTH_BITS: Final = 63  # of int64, without its sign
TILE: Final = 1 << 18  # entries per numpy call: with fewer threads wait, with more caches miss
SPAN: Final = 1 << 20  # entries that a thread takes at a time
ENTRY_BITS: Final = 51
ROUNDER: Final = 1.5 * 2.0**52
"""Added to a float64 below 2**51, it rounds it to an integer (halves to even) and leaves that
integer, in two's complement, in the low bits: three times faster than a conversion. Divided by the
scale, a power of two, it does so at the ring's resolution, so that nothing need be multiplied."""


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

    def require_weight(self, update: ModelUpdate) -> None:
        """Check the number of examples that ``update`` says is behind it.

        Raises:
            OutOfRing: It is not in 1..``max_weight``.
        """
        if not 1 <= update.num_examples <= self.max_weight:
            reason = f"weight {update.num_examples} is not in 1..{self.max_weight}"
            raise OutOfRing(update.site, reason)

    def require(self, update: ModelUpdate, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Check ``update`` whole against the ring and the model's ``shapes``.

        Raises:
            Incompatible: Layers, shapes or dtypes differ.
            NotFinite: A value is NaN or infinite.
            OutOfRing: A value exceeds ``magnitude`` or the weight is not in 1..``max_weight``.
        """
        self._require_form(update, shapes)
        if refusal := self._refusal(update, shapes):
            raise refusal

    def encode(
        self, update: ModelUpdate, shapes: Mapping[str, tuple[int, ...]]
    ) -> dict[str, NDArray[np.int64]]:
        """Entries of the update in the ring, after checking it whole against ``shapes``.

        Raises:
            Incompatible: Layers, shapes or dtypes differ.
            NotFinite: A value is NaN or infinite.
            OutOfRing: A value exceeds ``magnitude`` or the weight is not in 1..``max_weight``.
        """
        self._require_form(update, shapes)
        encoded = {name: np.zeros(shape, np.int64) for name, shape in shapes.items()}
        self._add(update, 1, encoded)
        return encoded

    @property
    def dtype(self) -> np.dtype[np.signedinteger[Any]]:
        """Smallest integers that every entry fits into."""
        entry = ceil(Fraction(self.magnitude) * (1 << self.fraction_bits))
        return np.dtype(np.int32 if entry < 1 << 31 else np.int64)

    def encode_into(
        self, x: Array, scratch: NDArray[np.float64], factor: float = 1.0
    ) -> NDArray[np.int64]:
        """Entries of ``factor`` times values that ``require`` has let pass, in ``scratch``."""
        rounder = ROUNDER / self.scale
        rounded = scratch[: x.size]
        np.copyto(rounded, x)  # first, since float16 would overflow and float32 lose bits
        if factor != 1.0:
            np.multiply(rounded, factor, out=rounded)
        np.add(rounded, rounder, out=rounded)
        q = rounded.view(np.int64)
        np.subtract(q, np.float64(rounder).view(np.int64), out=q)
        return q

    def add(
        self,
        update: ModelUpdate,
        sums: Mapping[str, NDArray[np.int64]],
        factor: float = 1.0,
    ) -> None:
        """Add the update, times its weight, to ``sums`` in place; on an error they are untouched.

        Args:
            update: What is added.
            sums: What it is added to, by layer.
            factor: From 0 to 1; what values are multiplied by in float64 before they are rounded.

        Raises:
            Incompatible: Layers, shapes or dtypes differ.
            NotFinite: A value is NaN or infinite.
            OutOfRing: A value exceeds ``magnitude`` or the weight is not in 1..``max_weight``.
        """
        self._require_form(update, {name: total.shape for name, total in sums.items()})
        self._add(update, update.num_examples, sums, factor)

    def decode(self, total: NDArray[np.int64], weight: int) -> Array:
        """The mean that a weighted sum stands for, in float64."""
        return np.true_divide(total, weight * self.scale)  # exact as two steps: a power of two

    def _require_form(self, update: ModelUpdate, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """``require`` but for the values."""
        self.require_weight(update)
        if update.delta.keys() != shapes.keys():
            differing = sorted(update.delta.keys() ^ shapes.keys())
            raise Incompatible(update.site, f"layers missing or unknown: {', '.join(differing)}")
        for name, shape in shapes.items():
            _require_layer(update.site, name, update.delta[name], shape)

    def _refusal(
        self, update: ModelUpdate, shapes: Mapping[str, tuple[int, ...]]
    ) -> UpdateRefused | None:
        """Why the first layer that cannot be encoded cannot; None if all can."""
        flat = _flat(update.delta)

        def bounds(span: Tile) -> list[tuple[str, float, float]]:
            runs = (flat[span.layer][tile] for tile in span.cut(TILE))
            return [(span.layer, float(x.min()), float(x.max())) for x in runs]

        for name, low, high in chain.from_iterable(each(shapes, SPAN, bounds)):
            if not (isfinite(low) and isfinite(high)):
                return NotFinite(update.site, f"layer {name} holds NaN or infinity")
            if max(-low, high) > self.magnitude:
                reason = f"layer {name} holds {max(-low, high):g}, beyond {self.magnitude:g}"
                return OutOfRing(update.site, reason)
        return None

    def _add(
        self,
        update: ModelUpdate,
        weight: int,
        sums: Mapping[str, NDArray[np.int64]],
        factor: float = 1.0,
    ) -> None:
        """Check each tile and add it while it is near, for memory is what the fold waits for.

        Integers modulo 2**64 give back exactly what was added to them, so a refused update is taken
        out of ``sums`` again.
        """
        values, totals = _flat(update.delta), _flat(sums)
        shapes = {name: total.shape for name, total in sums.items()}
        longest = min(TILE, max((total.size for total in sums.values()), default=0))
        rounder = ROUNDER / self.scale
        spare: list[NDArray[np.float64]] = []  # one for each thread; fresh pages are dear
        added: list[tuple[str, slice]] = []

        def add_tile(layer: str, tile: slice, times: int) -> bool:
            x, total = values[layer][tile], totals[layer][tile]
            if kernels.can_add(x):
                return kernels.add(x, total, factor, rounder, self.magnitude, times)
            low, high = float(x.min()), float(x.max())
            if not -self.magnitude <= low <= high <= self.magnitude:  # NaN is not, either
                return False
            scratch = spare.pop() if spare else np.empty(longest)
            q = self.encode_into(x, scratch, factor)
            np.add(total, q if times == 1 else np.multiply(q, times, out=q), out=total)
            spare.append(scratch)
            return True

        def add_span(span: Tile) -> bool:
            is_whole = kernels.can_add(values[span.layer])
            for tile in (span.run,) if is_whole else span.cut(TILE):
                if not add_tile(span.layer, tile, weight):
                    return False
                added.append((span.layer, tile))
            return True

        if all(each(shapes, SPAN, add_span)):
            return
        for layer, tile in added:
            add_tile(layer, tile, -weight)
        changed = OutOfRing(update.site, "its values changed while they were folded")
        raise self._refusal(update, shapes) or changed


def _require_layer(site: str, name: str, x: Array, shape: tuple[int, ...]) -> None:
    if x.shape != shape:
        raise Incompatible(site, f"layer {name} has shape {x.shape}, not {shape}")
    if x.dtype.kind != "f" or x.dtype.itemsize > 8:
        raise Incompatible(site, f"layer {name} holds {x.dtype}, not float16, 32 or 64")


def _flat(arrays: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Layers as runs in row order, without a copy where their memory is in that order."""
    return {name: x.reshape(-1) for name, x in arrays.items()}
