"""The coordinate-wise median, which a minority of wrong updates cannot move far.

Source: Yin et al., "Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates",
ICML 2018, Definition 1 and Algorithm 1 (option I), arXiv:1803.01498. Every site counts once,
whatever it says of its number of examples. The paper takes the median of gradients, here it is of
local updates.
"""

from __future__ import annotations

from typing import ClassVar, Final

import numpy as np
from numpy.typing import NDArray

from strategies.fedavg import FedAvg
from strategies.ring import Ring
from strategies.strategy import Partial, ServerState, count, require_enough, require_expected
from strategies.update import Array, ModelUpdate, Parameters

TILE: Final = 1 << 14


class CoordinateMedian(FedAvg, frozen=True, tag="coordinate-median"):
    """Move the model by the median of the client deltas, coordinate by coordinate.

    It keeps the cohort's updates until the round ends, eight bytes per entry.
    """

    min_updates: ClassVar[int] = 3

    def sensitivity(self, clip_norm: float, max_weight: int) -> dict[str, float]:
        raise NotImplementedError("a median is no sum: no clipping bounds what one site changes")

    def zero(self, state: ServerState) -> Partial:
        shapes = {name: x.shape for name, x in state.params.items()}
        return Partial(round=state.round + 1, shapes=shapes)

    def accumulate(self, partial: Partial, update: ModelUpdate, ring: Ring) -> Partial:
        require_expected(partial, update)
        partial.kept[update.site] = ring.encode(update, partial.shapes)
        return count(partial, update)

    def finish(self, partial: Partial, ring: Ring) -> Parameters:
        require_enough(partial, self.min_updates)
        return {
            name: _median([partial.kept[site][name] for site in sorted(partial.kept)], ring)
            for name in partial.shapes
        }


def _median(values: list[NDArray[np.int64]], ring: Ring) -> Array:
    """Median over the list; an even number of values gives the mean of the middle two."""
    low, high = (len(values) - 1) // 2, len(values) // 2
    flat = [x.reshape(-1) for x in values]
    median = np.empty(flat[0].size)
    for start in range(0, median.size, TILE):
        tile_SN = np.stack([x[start : start + TILE] for x in flat])  # noqa: N806 - sites, entries
        tile_SN.partition((low, high), axis=0)
        middle = ring.decode(tile_SN[low], 1) + ring.decode(tile_SN[high], 1)
        median[start : start + TILE] = middle / 2
    return median.reshape(values[0].shape)
