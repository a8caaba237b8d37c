"""Federated averaging with server momentum.

Source: Hsu et al., "Measuring the Effects of Non-Identical Data Distribution for Federated Visual
Classification", 2019, section 4.3, arXiv:1909.06335: v <- beta * v + dw, w <- w - v. There dw is
global minus local and here the other way round, so the model moves by +v; eta scales that step.
"""

from __future__ import annotations

from typing import Annotated

import numpy as np
from msgspec import Meta

from strategies.fedavg import FedAvg
from strategies.strategy import ServerState
from strategies.update import Parameters, tree_map


class FedAvgM(FedAvg, frozen=True):
    """Move the model by a momentum of the mean client delta.

    Attributes:
        beta: Share of the momentum that stays from round to round.
    """

    beta: Annotated[float, Meta(ge=0, lt=1)] = 0.9

    def init(self, params: Parameters) -> ServerState:
        return ServerState(params, {"v": tree_map(np.zeros_like, params)})

    def step(self, state: ServerState, delta: Parameters) -> ServerState:
        v = tree_map(lambda v, d: self.beta * v + d, state.moments["v"], delta)
        params = tree_map(lambda x, v: x + self.eta * v, state.params, v)
        return ServerState(params, {"v": v}, state.round + 1)
