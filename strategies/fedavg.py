"""Federated averaging.

Source: McMahan et al., AISTATS 2017, Algorithm 1, arXiv:1602.05629; the server learning rate eta is
the generalisation of Reddi et al., ICLR 2021, section 2. The mean is over the examples of the
cohort, and exact (``strategies.ring``).
"""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from strategies.strategy import ServerState, Strategy
from strategies.update import Parameters, tree_map


class FedAvg(Strategy, frozen=True):
    """Move the model by the mean client delta.

    Attributes:
        eta: Server learning rate; 1 replaces the model by the mean of the clients' models.
    """

    eta: Annotated[float, Meta(gt=0)] = 1.0

    def step(self, state: ServerState, delta: Parameters) -> ServerState:
        params = tree_map(lambda x, d: x + self.eta * d, state.params, delta)
        return ServerState(params, round=state.round + 1)
