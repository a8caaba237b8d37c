"""Federated boosted trees by bagging: each round appends the new trees of all its sites.

Every site of a round boosts the same ensemble for some rounds on its own examples, and sends the
trees that came of it; the server appends them, in the order of the sites' names. So all trees of a
round correct the same errors, as those of a random forest do, and rounds boost.

Source: Flower 1.41, ``FedXgbBagging`` and ``aggregate_bagging``; the idea is that of Friedman,
"Greedy Function Approximation: A Gradient Boosting Machine", Annals of Statistics 29(5), 2001,
Algorithm 1, with a bag of trees in each step. Where we differ: Flower appends the first
``num_parallel_tree`` trees of an update and calls all of them trees of the first class, so it holds
for one local round and two classes alone; here all trees are appended, under their own class. And
Flower believes what a site sends.

A tree counts fully, whatever the site's number of examples, as in Flower. So the step of a round is
the sum of its sites' steps, and with many of them the ``eta`` of ``build()`` should be divided by
their number, as ``scaled_lr`` of Flower's xgboost-comprehensive example does. (On why one rate for
all trees falls short: Ma et al., "Gradient-less Federated Gradient Boosting Trees with Learnable
Learning Rates", EuroMLSys 2023, arXiv:2304.07537.)
"""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import numpy as np

from strategies.forest import (
    LAYER,
    Forest,
    ForestInvalid,
    ValueTooLarge,
    content_of,
    forest_of,
    layer_of,
    read_forest,
    read_growth,
)
from strategies.ring import Ring
from strategies.sensitivity import Sensitivity, of_result
from strategies.strategy import (
    Partial,
    ServerState,
    Strategy,
    count,
    require_enough,
    require_expected,
)
from strategies.update import Incompatible, ModelUpdate, NotFinite, Parameters


class XgbBagging(Strategy, frozen=True, tag="xgb-bagging"):
    """Append the new trees of every site."""

    is_coordinatewise: ClassVar[bool] = False
    is_sum: ClassVar[bool] = False
    model_kind: ClassVar[Literal["arrays", "trees"]] = "trees"

    def sensitivity(self, clip_norm: float, max_weight: int) -> Sensitivity:
        """None: trees are appended whole, and no clipping bounds what they add."""
        return of_result(math.inf)

    def zero(self, state: ServerState) -> Partial:
        shapes = {name: x.shape for name, x in state.params.items()}
        return Partial(round=state.round + 1, shapes=shapes, model=state.params)

    def accumulate(self, partial: Partial, update: ModelUpdate, ring: Ring) -> Partial:
        """Keep the trees of one update, once they were looked at.

        Raises:
            UpdateRefused: It is no growth of the model by at most ``partial.epochs`` boosting
                rounds, of another round, or a second update of the same site.
        """
        require_expected(partial, update)
        ring.require_weight(update)
        content = np.frombuffer(_growth(partial, update).write(), np.int8)
        kept = partial.kept.open({LAYER: content.shape}, content.dtype)
        kept.write(LAYER, 0, content)
        partial.kept.keep(update.site, kept)
        return count(partial, update)

    def finish(self, partial: Partial, ring: Ring) -> Parameters:
        """The trees of all updates, by their sites' names, as an ensemble of their own."""
        require_enough(partial, self.min_updates)
        grown = [
            read_forest(partial.kept[site].read(LAYER, 0, 1 << 62).tobytes())
            for site in sorted(partial.kept)
        ]
        return layer_of(forest_of(partial.model).emptied().grown_by(grown))

    def step(self, state: ServerState, delta: Parameters) -> ServerState:
        after = forest_of(state.params).grown_by([forest_of(delta)])
        return ServerState(layer_of(after), round=state.round + 1)


def _growth(partial: Partial, update: ModelUpdate) -> Forest:
    """Trees of an update.

    Raises:
        UpdateRefused: They are none that can be taken.
    """
    model = forest_of(partial.model)
    try:
        return read_growth(content_of(update.delta), model, partial.epochs)
    except ValueTooLarge as error:
        raise NotFinite(update.site, str(error)) from error
    except ForestInvalid as error:
        raise Incompatible(update.site, str(error)) from error
