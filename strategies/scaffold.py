"""SCAFFOLD: control variates take the drift out of local steps.

Source: Karimireddy et al., "SCAFFOLD: Stochastic Controlled Averaging for Federated Learning", ICML
2020, Algorithm 1 and equations 3 to 5, arXiv:1910.06378. A site steps by

    y_i <- y_i - eta_l * (g_i(y_i) - c_i + c)

sends Delta y_i = y_i - x and Delta c_i = c_i^+ - c_i, and the server moves x by eta_g times the
mean of the first and c by |S|/N times the mean of the second. Every site counts once, as there.
Where there all sites take K steps, here each takes as many as its epochs need and K is its own.

Plain SGD alone: option II reads the mean gradient off (x - y_i) / (K * eta_l), which is none with
momentum, and the paper says nothing of other local optimisers. Running statistics have no gradient;
they are averaged, and their control variates stay zero.
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar, Literal

import numpy as np

from strategies.fedavg import FedAvg
from strategies.ring import Ring
from strategies.sensitivity import Sensitivity, of_sum
from strategies.strategy import (
    ClientHalf,
    LocalResult,
    Partial,
    Scalar,
    ServerState,
    SiteShare,
)
from strategies.update import ModelUpdate, Parameters, beside, tree_map, vector_of, without

CONTROL = "control"


class Scaffold(FedAvg, frozen=True):
    """Move the model by the mean delta of sites that correct their gradients by c - c_i.

    Attributes:
        option: How a site renews its control variate. ``path`` is the paper's option II, the mean
            gradient along its own steps; ``gradient`` is option I, the gradient at the global
            model, for one more pass over its examples.
    """

    option: Literal["path", "gradient"] = "path"

    vectors: ClassVar[tuple[str, ...]] = (CONTROL,)
    local_optimizers: ClassVar[Literal["any", "sgd", "plain-sgd"]] = "plain-sgd"

    @property
    def has_memory(self) -> bool:
        return True

    def init(self, params: Parameters) -> ServerState:
        return ServerState(params, {"c": tree_map(np.zeros_like, params)})

    def client_half(self) -> ClientHalf:
        scalars: tuple[Scalar, ...] = ("steps", "rate") if self.option == "path" else ()
        return ClientHalf(correction={}, scalars=scalars, wants_gradient=self.option == "gradient")

    def offer(self, state: ServerState) -> Parameters:
        return {**state.params, **beside(CONTROL, state.moments["c"])}

    def model_of(self, offered: Parameters) -> Parameters:
        return without(offered, CONTROL)

    def half_at(self, offered: Parameters, memory: Parameters) -> ClientHalf:
        """Line 9: c - c_i is added to each gradient; c_i is zero before the site's first round."""
        c = vector_of(offered, CONTROL)
        correction = tree_map(np.subtract, c, memory) if memory else c
        return replace(self.client_half(), correction=correction)

    def conclude(self, local: LocalResult, offered: Parameters, memory: Parameters) -> SiteShare:
        """Lines 12 to 14: c_i^+ by option I or II, and what is sent of both."""
        c = vector_of(offered, CONTROL)
        c_i = memory or tree_map(np.zeros_like, c)
        found = self._gradient(local, c, c_i)
        c_plus = {
            name: np.asarray(found[name] if name in local.trainable else c_i[name], x.dtype)
            for name, x in c.items()
        }
        change = tree_map(np.subtract, c_plus, c_i)
        return SiteShare({**local.delta, **beside(CONTROL, change)}, c_plus)

    def contribution(self, update: ModelUpdate, ring: Ring) -> ModelUpdate:
        """Both vectors as they are; every site counts once."""
        return replace(update, num_examples=1)

    def finish(self, partial: Partial, ring: Ring) -> Parameters:
        """Lines 16 and 17: the mean Delta y_i, and |S|/N times the mean Delta c_i."""
        means = super().finish(partial, ring)
        change = vector_of(means, CONTROL)
        shared = tree_map(lambda x: partial.share * x, change)
        return without(means, CONTROL) | beside(CONTROL, shared)

    def step(self, state: ServerState, delta: Parameters) -> ServerState:
        moved = super().step(state, without(delta, CONTROL))
        c = tree_map(np.add, state.moments["c"], vector_of(delta, CONTROL))
        return replace(moved, moments={"c": c})

    def sensitivity(self, clip_norm: float, max_weight: int) -> Sensitivity:
        """Bounds by part: every site counts once, and both vectors are clipped."""
        return of_sum(1, delta=clip_norm, control=clip_norm)

    def _gradient(self, local: LocalResult, c: Parameters, c_i: Parameters) -> Parameters:
        if self.option == "gradient":
            return local.gradient
        path = local.scalars["steps"] * local.scalars["rate"]
        exact = {name: np.asarray(x, np.float64) for name, x in c_i.items()}
        return tree_map(lambda ci, x, delta: ci - x - delta / path, exact, c, local.delta)
