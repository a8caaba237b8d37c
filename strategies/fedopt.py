"""Adaptive server optimisers: FedAdagrad, FedYogi, FedAdam.

The mean client delta is taken as a pseudo-gradient and handed to an adaptive optimiser. The three
differ only in how the second moment forgets.

Source: Reddi et al., "Adaptive Federated Optimization", ICLR 2021, Algorithm 2, arXiv:2003.00295.
v starts at tau**2 and nothing is bias-corrected, as there; the mean is weighted by examples, where
Algorithm 2 counts every client once. Moments have the dtype of the parameters; the arithmetic of a
step is in float64.
"""

from __future__ import annotations

from typing import Annotated

import numpy as np
from msgspec import Meta

from strategies.strategy import ServerState, Strategy
from strategies.update import Array, Parameters, tree_map

Positive = Annotated[float, Meta(gt=0)]
Decay = Annotated[float, Meta(ge=0, lt=1)]


class FedAdagrad(Strategy, frozen=True):
    """Second moment that never forgets.

    Attributes:
        eta: Server learning rate.
        beta_1: Decay of the first moment m.
        tau: Floor under the root of v, in units of the delta.
    """

    eta: Positive = 0.1
    beta_1: Decay = 0.0
    tau: Positive = 1e-3

    def init(self, params: Parameters) -> ServerState:
        m = tree_map(np.zeros_like, params)
        v = tree_map(lambda x: np.full_like(x, self.tau**2), params)
        return ServerState(params, {"m": m, "v": v})

    def step(self, state: ServerState, delta: Parameters) -> ServerState:
        m = tree_map(self.first_moment, state.moments["m"], delta)
        v = tree_map(self.second_moment, state.moments["v"], delta)
        params = tree_map(self.ascend, state.params, m, v)
        return ServerState(params, {"m": m, "v": v}, state.round + 1)

    def first_moment(self, m: Array, delta: Array) -> Array:
        """Line 10: m_t from m_{t-1} and Delta_t."""
        return self.beta_1 * m + (1 - self.beta_1) * delta

    def second_moment(self, v: Array, delta: Array) -> Array:
        """Lines 11 to 13: v_t from v_{t-1} and Delta_t."""
        return v + np.square(delta)

    def ascend(self, x: Array, m: Array, v: Array) -> Array:
        """Line 14: x_{t+1}. Deltas point downhill already, so the step is added."""
        return x + self.eta * m.astype(np.float64) / (np.sqrt(v, dtype=np.float64) + self.tau)


class FedYogi(FedAdagrad, frozen=True):
    """Second moment that moves by at most a fixed share of delta**2.

    Attributes:
        beta_2: Decay of the second moment v.
    """

    beta_1: Decay = 0.9
    beta_2: Decay = 0.99

    def second_moment(self, v: Array, delta: Array) -> Array:
        square = np.square(delta)
        return v - (1 - self.beta_2) * square * np.sign(v - square)


class FedAdam(FedAdagrad, frozen=True):
    """Second moment as an exponential average.

    Attributes:
        beta_2: Decay of the second moment v.
    """

    beta_1: Decay = 0.9
    beta_2: Decay = 0.99

    def second_moment(self, v: Array, delta: Array) -> Array:
        return self.beta_2 * v + (1 - self.beta_2) * np.square(delta)
