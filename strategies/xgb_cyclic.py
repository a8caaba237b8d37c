"""Federated boosted trees in turn: each round one site boosts the ensemble of all before it.

Source: Flower 1.41, ``FedXgbCyclic``; cyclic training goes back to Chang et al., "Distributed Deep
Learning Networks among Institutions for Medical Imaging", JAMIA 25(8), 2018 (there for weights).
Where we differ: Flower's site sends the whole ensemble, which replaces the server's; here it sends
its new trees, and the server appends them. The ensemble is the same, less travels, and no site can
change the trees of those before it.
"""

from __future__ import annotations

from typing import ClassVar

from strategies.ring import Ring
from strategies.strategy import Partial
from strategies.update import Parameters, StrategyError
from strategies.xgb_bagging import XgbBagging


class XgbCyclic(XgbBagging, frozen=True, tag="xgb-cyclic"):
    """Append the new trees of the one site whose turn it is."""

    takes_turns: ClassVar[bool] = True

    def finish(self, partial: Partial, ring: Ring) -> Parameters:
        if partial.num_updates > 1:
            raise StrategyError(f"{partial.num_updates} sites trained, of which each has its turn")
        return super().finish(partial, ring)
