"""Strategies whose server steps while sites are training: what they have in common.

A round is one step of the server. The answers that make it are to questions of this round or of
earlier ones; how many steps lie between is an answer's staleness, and it is scaled by a weight of
that before it is rounded to the ring. Such a strategy offers its model and nothing beside it, and
its sites keep nothing, so that an earlier model is all that an earlier question needs.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from strategies.ring import Ring
from strategies.sensitivity import Sensitivity, of_sum
from strategies.staleness import AnyStaleness, Polynomial
from strategies.strategy import Partial, Strategy, count, require_first
from strategies.update import Incompatible, ModelUpdate


class Asynchronous(Strategy, frozen=True):
    """A strategy that takes answers to earlier questions; every answer counts once.

    Attributes:
        staleness: What an answer counts for by its staleness.
    """

    is_abstract: ClassVar[bool] = True

    staleness: AnyStaleness = Polynomial()

    @property
    def buffered(self) -> int:
        raise NotImplementedError

    def accumulate(self, partial: Partial, update: ModelUpdate, ring: Ring) -> Partial:
        ring.require_weight(update)
        require_first(partial, update)
        staleness = partial.round - update.round
        if staleness < 0 or update.round < 1:
            reason = f"update of round {update.round} came in round {partial.round}"
            raise Incompatible(update.site, reason)
        once = dataclasses.replace(update, num_examples=1)
        ring.add(once, partial.sums, self.staleness.weight(staleness))
        return count(partial, once)

    def sensitivity(self, clip_norm: float, max_weight: int) -> Sensitivity:
        """Every site counts once, and no weight by staleness is above 1."""
        return of_sum(weight=1, delta=clip_norm)
