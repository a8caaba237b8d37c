"""A tally: what sites answer is added up exactly, and every site counts once.

It folds federated analytics, whose answers are sums over a site's examples already
(``workflows.analyses``), so nothing is weighted and no mean is taken. Source: the counting queries
of Ramage and Mazzocchi, "Federated Analytics: Collaborative Data Science without Data Collection",
2020; the sum itself is plain.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from strategies.ring import Ring
from strategies.sensitivity import Sensitivity, of_sum
from strategies.strategy import Partial, ServerState, Strategy
from strategies.tiles import Tile
from strategies.update import Array, ModelUpdate, Parameters, tree_map


class Tally(Strategy, frozen=True):
    """Add the sum of the sites' answers to what was counted so far."""

    def sensitivity(self, clip_norm: float, max_weight: int) -> Sensitivity:
        """A site adds what it answers, once."""
        return of_sum(weight=1, delta=clip_norm)

    def contribution(self, update: ModelUpdate, ring: Ring) -> ModelUpdate:
        """The answer, with the weight one."""
        return replace(update, num_examples=1)

    def tile_finisher(self, partial: Partial, ring: Ring) -> Callable[[Tile], Array]:
        """The sum, where other strategies take the mean."""
        return lambda tile: ring.decode(partial.sums[tile.layer].reshape(-1)[tile.run], 1)

    def step(self, state: ServerState, delta: Parameters) -> ServerState:
        params = tree_map(lambda x, d: x + d, state.params, delta)
        return ServerState(params, round=state.round + 1)
