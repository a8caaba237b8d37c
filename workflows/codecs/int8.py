"""Stochastic rounding to a signed byte, on a grid that the largest entry of each bucket sets.

Source: QSGD, Alistarh et al., NeurIPS 2017, section 3.1, with its variants (buckets, the maximum
norm in place of the Euclidean), arXiv:1610.02132, and 127 levels; the entropy code on top is left
out. With the maximum norm nothing is ever clipped: an entry is off by less than the scale, which is
max|x| / 127 rounded up to float32, its mean is exact, its variance at most scale**2 / 4.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Final

import numpy as np
from msgspec import Meta

from strategies.update import Array
from workflows.codecs.codec import Codec, Form, Undecodable, Unencodable

LEVELS: Final = 127
SCALE: Final = np.dtype("<f4")
TILE: Final = 1 << 16


class Int8(Codec, frozen=True, tag="int8"):
    """A byte an entry, and four for each bucket; unbiased.

    A layer travels as the buckets' scales (float32) and then its entries, in row order.

    Attributes:
        bucket: Entries that share a scale. Fewer are more exact and take more bytes.
    """

    unbiased: ClassVar[bool] = True
    bucket: Annotated[int, Meta(ge=8, le=1 << 20)] = 1024

    def form(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Form:
        num_entries = int(np.prod(shape))
        size = SCALE.itemsize * self._num_buckets(num_entries) + num_entries
        return Form(np.dtype(np.uint8), (size,))

    def encode_layer(self, x: Array, rng: np.random.Generator) -> np.ndarray[Any, Any]:
        flat = x.reshape(-1)
        num_buckets = self._num_buckets(flat.size)
        scales, levels = np.empty(num_buckets, SCALE), np.empty(flat.size, np.int8)
        for first, start, stop in self._tiles(flat.size):
            tile = flat[start:stop].astype(np.float64)
            found = _scales(np.maximum.reduceat(np.abs(tile), np.arange(0, tile.size, self.bucket)))
            scales[first : first + found.size] = found
            tile /= self._spread(np.where(found > 0, found, 1.0), tile.size)
            tile += rng.random(tile.size)
            levels[start:stop] = np.minimum(np.floor(tile), LEVELS)  # 127 + (1 - 2**-53) is 128
        return np.concatenate([scales.view(np.uint8), levels.view(np.uint8)])

    def decode_layer(
        self,
        travelled: np.ndarray[Any, Any],
        shape: tuple[int, ...],
        dtype: np.dtype[Any],
        rng: np.random.Generator,
    ) -> Array:
        flat = np.empty(int(np.prod(shape)), dtype)
        split = SCALE.itemsize * self._num_buckets(flat.size)
        scales = np.frombuffer(travelled[:split].tobytes(), SCALE)
        levels = travelled[split:].view(np.int8)
        if not (np.isfinite(scales).all() and (scales >= 0).all()):
            raise Undecodable("has a scale that is none")
        if levels.min(initial=0) < -LEVELS:
            raise Undecodable("has an entry below -127")
        with np.errstate(over="ignore"):  # the ring refuses what is not finite
            for first, start, stop in self._tiles(flat.size):
                tile = levels[start:stop].astype(np.float64)
                tile *= self._spread(scales[first:], tile.size)
                flat[start:stop] = tile
        return flat.reshape(shape)

    def _num_buckets(self, num_entries: int) -> int:
        return -(-num_entries // self.bucket)

    def _tiles(self, num_entries: int) -> list[tuple[int, int, int]]:
        """First bucket, first entry and end of runs of whole buckets that fit into the cache."""
        step = self.bucket * max(1, TILE // self.bucket)
        return [
            (start // self.bucket, start, min(start + step, num_entries))
            for start in range(0, num_entries, step)
        ]

    def _spread(self, scales: np.ndarray[Any, Any], num_entries: int) -> np.ndarray[Any, Any]:
        """The scale of each of ``num_entries`` entries, in float64."""
        wanted = scales[: self._num_buckets(num_entries)].astype(np.float64)
        return np.repeat(wanted, self.bucket)[:num_entries]


def _scales(peaks: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The least float32 that is no less than each of ``peaks`` / 127.

    Raises:
        Unencodable: There is none.
    """
    exact = peaks / LEVELS
    with np.errstate(over="ignore"):
        scales = exact.astype(SCALE)
        scales = np.where(scales < exact, np.nextafter(scales, np.float32(np.inf)), scales)
    if not np.isfinite(scales).all():
        raise Unencodable("holds NaN, infinity or a value beyond float32")
    return scales
