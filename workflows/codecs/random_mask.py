"""A random part of each layer, from a seed that both ends know, so that no index travels.

Source: Konecny et al., "Federated Learning: Strategies for Improving Communication Efficiency",
2016, section 3 (sketched updates, subsampling), arXiv:1610.05492. The mask is drawn anew for each
site, round and layer; the server divides by the share that was kept, so the mean is exact and the
variance of an entry x is x**2 * (n / k - 1) for k kept of n.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import numpy as np
from msgspec import Meta

from strategies.update import Array
from workflows.codecs.codec import Codec, Form


class RandomMask(Codec, frozen=True, tag="random-mask"):
    """``fraction`` of each layer's entries travels, at least one; unbiased.

    What travels counts 1 / fraction times, so that noise grows as fraction falls, and so does the
    room that ``ring.magnitude`` must leave.

    Attributes:
        fraction: Share of entries that travel.
    """

    unbiased: ClassVar[bool] = True
    fraction: Annotated[float, Meta(gt=0, le=1)] = 0.25

    def form(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Form:
        return Form(dtype, (self._num_kept(int(np.prod(shape))),))

    def encode_layer(self, x: Array, rng: np.random.Generator) -> np.ndarray[Any, Any]:
        flat = x.reshape(-1)
        kept: np.ndarray[Any, Any] = flat[self._places(flat.size, rng)]
        return kept

    def decode_layer(
        self,
        travelled: np.ndarray[Any, Any],
        shape: tuple[int, ...],
        dtype: np.dtype[Any],
        rng: np.random.Generator,
    ) -> Array:
        flat = np.zeros(int(np.prod(shape)), dtype)
        share = flat.size / max(1, travelled.size)
        with np.errstate(over="ignore"):  # the ring refuses what is not finite
            flat[self._places(flat.size, rng)] = travelled * share
        return flat.reshape(shape)

    def _num_kept(self, num_entries: int) -> int:
        return min(num_entries, max(1, round(self.fraction * num_entries)))

    def _places(self, num_entries: int, rng: np.random.Generator) -> np.ndarray[Any, Any]:
        """Sorted positions of the entries that travel."""
        num_kept = self._num_kept(num_entries)
        return np.sort(rng.choice(num_entries, num_kept, replace=False, shuffle=False))
