"""FedDyn: a regulariser that each site renews, so that local optima agree with the global one.

Source: Acar et al., "Federated Learning Based on Dynamic Regularization", ICLR 2021, Algorithm 1,
arXiv:2111.04263. A site minimises

    L_k(theta) - <g_k, theta> + alpha/2 * ||theta - theta^{t-1}||**2

and then renews g_k <- g_k - alpha * (theta_k - theta^{t-1}); the server keeps
h <- h - alpha/m * sum_k (theta_k - theta^{t-1}) and sets theta to the mean theta_k - h/alpha, where
m counts all sites. Every site counts once, as there.

The local problem is stated without naming a solver, so any local optimiser may approach it; as in
the authors' own code a few epochs stand for its minimum. The server's correction would carry
running statistics away, so a model that has such is refused.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, ClassVar

import numpy as np
from msgspec import Meta

from strategies.ring import Ring
from strategies.sensitivity import Sensitivity, of_sum
from strategies.strategy import (
    SCALARS,
    ClientHalf,
    LocalResult,
    Partial,
    ServerState,
    SiteShare,
    Strategy,
)
from strategies.update import ModelUpdate, Parameters, tree_map, without

SHARE = f"{SCALARS}/share"


class FedDyn(Strategy, frozen=True):
    """Mean of the clients' models, moved on by what all updates so far have in common.

    Attributes:
        alpha: Weight of the regulariser, in units of the local loss's curvature; small lets sites
            go far.
    """

    alpha: Annotated[float, Meta(gt=0)] = 0.1

    is_coordinatewise: ClassVar[bool] = False  # a step needs the share of sites beside its entries

    @property
    def has_memory(self) -> bool:
        return True

    def init(self, params: Parameters) -> ServerState:
        return ServerState(params, {"h": tree_map(np.zeros_like, params)})

    def client_half(self) -> ClientHalf:
        return ClientHalf(proximal_mu=self.alpha, correction={}, wants_gradients_only=True)

    def half_at(self, offered: Parameters, memory: Parameters) -> ClientHalf:
        """The gradient of -<g_k, theta> is -g_k; that is zero before the site's first round."""
        return replace(self.client_half(), correction=tree_map(np.negative, memory))

    def conclude(self, local: LocalResult, offered: Parameters, memory: Parameters) -> SiteShare:
        g_k = memory or tree_map(np.zeros_like, offered)
        renewed = tree_map(lambda g, delta: g - self.alpha * delta, g_k, local.delta)
        return SiteShare(local.delta, renewed)

    def contribution(self, update: ModelUpdate, ring: Ring) -> ModelUpdate:
        """The delta as it is; every site counts once."""
        return replace(update, num_examples=1)

    def finish(self, partial: Partial, ring: Ring) -> Parameters:
        """The mean delta, and beside it |P|/m, by which ``step`` gets the sum over m from it."""
        return {**super().finish(partial, ring), SHARE: np.array(partial.share)}

    def step(self, state: ServerState, delta: Parameters) -> ServerState:
        share, mean = float(delta.get(SHARE, np.ones(()))), without(delta, SCALARS)
        h = tree_map(lambda h, d: h - self.alpha * share * d, state.moments["h"], mean)
        params = tree_map(lambda x, d, h: x + d - h / self.alpha, state.params, mean, h)
        return ServerState(params, {"h": h}, state.round + 1)

    def sensitivity(self, clip_norm: float, max_weight: int) -> Sensitivity:
        """Every site counts once."""
        return of_sum(1, delta=clip_norm)
