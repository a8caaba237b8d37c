"""Norm bounding: the mean of updates none of which is longer than a bound.

Source: Sun, Kairouz, Suresh, McMahan, "Can You Really Backdoor Federated Learning?", 2019,
section 4 (norm thresholding of updates), arXiv:1911.07963: the mean of D / max(1, |D| / M). There
sites weigh what they hold examples, here every site counts once, for a bound on length is worth
nothing against a claim of a million examples.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Annotated

import numpy as np
from msgspec import Meta

from strategies.fedavg import FedAvg
from strategies.ring import Ring
from strategies.sensitivity import Sensitivity, of_sum
from strategies.strategy import Partial, count, require_expected
from strategies.tiles import Tile, each
from strategies.update import ModelUpdate, Parameters


class NormBounding(FedAvg, frozen=True, tag="norm-bounding"):
    """Move the model by the mean of the client deltas, each shortened to a bound.

    Attributes:
        max_norm: M, the longest that an update may be (Euclidean, all layers together), in units
            of the model's parameters.
    """

    max_norm: Annotated[float, Meta(gt=0)] = 1.0

    def accumulate(self, partial: Partial, update: ModelUpdate, ring: Ring) -> Partial:
        require_expected(partial, update)
        ring.require(update, partial.shapes)
        factor = 1 / max(1.0, norm(update.delta) / self.max_norm)
        once = dataclasses.replace(update, num_examples=1)
        ring.add(once, partial.sums, factor)
        return count(partial, once)

    def sensitivity(self, clip_norm: float, max_weight: int) -> Sensitivity:
        """Every site counts once, and is shortened to ``max_norm``."""
        return of_sum(1, delta=min(clip_norm, self.max_norm))


def norm(delta: Parameters) -> float:
    """Euclidean norm of all layers together, the same on every machine."""
    flat = {name: x.reshape(-1) for name, x in delta.items()}

    def square(tile: Tile) -> float:
        x = flat[tile.layer][tile.run].astype(np.float64)
        return float(np.add.reduce(np.square(x, out=x)))

    return math.sqrt(math.fsum(each({n: x.shape for n, x in delta.items()}, 1 << 17, square)))
