"""FedAsync: every answer moves the model a part of the way to the one that its site found.

Source: Xie, Koyejo and Gupta, "Asynchronous Federated Optimization", 2019, Algorithm 1,
arXiv:1903.03934:

    x_t <- (1 - alpha_t) * x_{t-1} + alpha_t * x_new,   alpha_t = alpha * s(staleness)

where x_new minimises the site's loss plus rho/2 * ||x - x_tau||**2 from the model x_tau that the
site was given. A site sends delta = x_new - x_tau, so the step is taken in two: ``blend`` gives
(1 - alpha_t) * x_{t-1} + alpha_t * x_tau, which the server knows without the site, and ``step``
adds alpha times the folded s(staleness) * delta. So nothing but what the site sent is in the sum,
and clipping bounds that. The model is rounded to its own dtype twice, where the paper has reals.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated

import numpy as np
from msgspec import Meta

from strategies.asynchronous import Asynchronous
from strategies.strategy import ClientHalf, ServerState
from strategies.update import Parameters, tree_map


class FedAsync(Asynchronous, frozen=True):
    """Mix each site's model into the global one as it arrives.

    Attributes:
        alpha: Share of an answer to the model in force.
        rho: Weight of the proximal term; 0 for none.
    """

    alpha: Annotated[float, Meta(gt=0, le=1)] = 0.6
    rho: Annotated[float, Meta(ge=0)] = 0.005

    @property
    def buffered(self) -> int:
        return 1

    def client_half(self) -> ClientHalf:
        return ClientHalf(proximal_mu=self.rho)

    def blend(self, state: ServerState, starts: Sequence[tuple[Parameters, int]]) -> ServerState:
        ((start, staleness),) = starts
        alpha_t = self.alpha * self.staleness.weight(staleness)
        params = tree_map(
            lambda x, x_tau: x + alpha_t * np.subtract(x_tau, x, dtype=np.float64),
            state.params,
            start,
        )
        return replace(state, params=params)

    def step(self, state: ServerState, delta: Parameters) -> ServerState:
        params = tree_map(lambda x, d: x + self.alpha * d, state.params, delta)
        return ServerState(params, round=state.round + 1)
