"""The largest entries of each layer; what did not travel is added to the site's next update.

Source: Stich, Cordonnier, Jaggi, "Sparsified SGD with Memory", NeurIPS 2018, Algorithm 1 and
definition 2.1, arXiv:1809.07599. With a site's delta in place of its gradient step, a site sends

    g_t = top_k(m_t + delta_t)        and keeps        m_{t+1} = m_t + delta_t - g_t

Karimireddy et al., "Error Feedback Fixes SignSGD and other Gradient Compression Schemes", ICML
2019, Algorithm 2, arXiv:1901.09847, has the same for any contraction. As in Lin et al., "Deep
Gradient Compression", ICLR 2018, section 3.1, arXiv:1712.01887, the k entries are those of each
layer and not of the whole model, so that no layer is silent; its momentum correction and clipping
are left out. In both papers every worker takes part in every step. Here a site's memory waits until
the site is drawn again, counts with the weight of the update that it then travels in, and is
renewed only by an update that was folded.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Final

import numpy as np
from msgspec import Meta

from strategies import Parameters, SiteShare
from strategies.update import Array, tree_map
from workflows.codecs.codec import Codec, Form, Undecodable, Unencodable

POSITION: Final = np.dtype("<u4")
POSITIONS: Final = 1 << 32


class TopK(Codec, frozen=True, tag="top-k"):
    """``fraction`` of each layer's entries travels, the largest, at least one; the rest is kept.

    A layer travels as the sorted positions of its entries (four bytes each, or a bit for every
    entry of the layer, whichever is shorter; none where all travel) and then the entries in their
    order, as they are. Of equal entries the earlier one goes first. All that a site sends and the
    last that it keeps add up to all its deltas, but for one rounding to the layer's dtype a round.

    Attributes:
        fraction: Share of entries that travel.
    """

    has_memory: ClassVar[bool] = True
    fraction: Annotated[float, Meta(gt=0, le=1)] = 0.1

    def conclude(self, delta: Parameters, memory: Parameters, seed: int) -> SiteShare:
        with np.errstate(over="ignore"):  # what is not finite has no form
            whole = tree_map(np.add, delta, memory) if memory else delta
        sent = self.encode(whole, seed)
        return SiteShare(sent, tree_map(np.subtract, whole, self.decode(sent, whole, seed)))

    def form(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Form:
        num_entries = int(np.prod(shape, dtype=np.int64))
        num_kept = self._num_kept(num_entries)
        size = self._place_bytes(num_entries) + num_kept * dtype.itemsize
        return Form(np.dtype(np.uint8), (size,))

    def encode_layer(self, x: Array, rng: np.random.Generator) -> np.ndarray[Any, Any]:
        flat = x.reshape(-1)
        if not np.isfinite(flat).all():
            raise Unencodable("holds NaN or infinity, of which none is the largest")
        places = _largest(np.abs(flat), self._num_kept(flat.size))
        values = flat[places].astype(x.dtype.newbyteorder("<"), copy=False)
        match self._place_bytes(flat.size):
            case 0:
                head = np.empty(0, np.uint8)
            case size if size < POSITION.itemsize * places.size:
                bits = np.zeros(flat.size, bool)
                bits[places] = True
                head = np.packbits(bits)
            case _:
                head = places.astype(POSITION).view(np.uint8)
        return np.concatenate([head, values.view(np.uint8)])

    def decode_layer(
        self,
        travelled: np.ndarray[Any, Any],
        shape: tuple[int, ...],
        dtype: np.dtype[Any],
        rng: np.random.Generator,
    ) -> Array:
        flat = np.zeros(int(np.prod(shape, dtype=np.int64)), dtype)
        split = self._place_bytes(flat.size)
        places = self._places(travelled[:split], flat.size)
        values = np.frombuffer(travelled[split:].tobytes(), dtype.newbyteorder("<"))
        flat[places] = values
        return flat.reshape(shape)

    def _places(self, head: np.ndarray[Any, Any], num_entries: int) -> np.ndarray[Any, Any]:
        """The positions that ``head`` tells.

        Raises:
            Undecodable: They are not so many different ones of the layer, in order.
        """
        num_kept = self._num_kept(num_entries)
        if not head.size:
            return np.arange(num_kept)
        if head.size < POSITION.itemsize * num_kept:
            places = np.flatnonzero(np.unpackbits(head))
            if places.size != num_kept:
                raise Undecodable(f"marks {places.size} entries, not {num_kept}")
        else:
            places = np.frombuffer(head.tobytes(), POSITION).astype(np.int64)
            if (np.diff(places) <= 0).any():
                raise Undecodable("names a position twice, or after a later one")
        if places[-1] >= num_entries:
            raise Undecodable(f"names position {places[-1]}, beyond its {num_entries} entries")
        return places

    def _num_kept(self, num_entries: int) -> int:
        return min(num_entries, max(1, round(self.fraction * num_entries)))

    def _place_bytes(self, num_entries: int) -> int:
        """Bytes that tell which entries travel."""
        num_kept, bits = self._num_kept(num_entries), -(-num_entries // 8)
        if num_kept == num_entries:
            return 0
        return bits if num_entries > POSITIONS else min(POSITION.itemsize * num_kept, bits)


def _largest(sizes: np.ndarray[Any, Any], count: int) -> np.ndarray[Any, Any]:
    """Sorted positions of the ``count`` largest; of equal ones the first."""
    if count == sizes.size:
        return np.arange(count)
    least = np.partition(sizes, sizes.size - count)[sizes.size - count]
    above = np.flatnonzero(sizes > least)
    level = np.flatnonzero(sizes == least)[: count - above.size]
    return np.sort(np.concatenate([above, level]))
