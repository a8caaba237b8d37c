"""FedBuff: the server steps when a buffer of answers is full, whoever is still training.

Source: Nguyen et al., "Federated Learning with Buffered Asynchronous Aggregation", AISTATS 2022,
Algorithm 1, arXiv:2106.06639. As there, each answer counts once, however many examples are behind
it, and is scaled by s(staleness) of section 5 (1 / sqrt(1 + staleness)); the sum is divided by the
number of answers, not by the sum of their scales, so that a stale buffer makes a shorter step.
There K answers are waited for whatever happens; here a round that lost too many steps with those
that came, if they are enough for the job, and divides by their number.
"""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from strategies.asynchronous import Asynchronous
from strategies.strategy import ServerState
from strategies.update import Parameters, tree_map


class FedBuff(Asynchronous, frozen=True):
    """Move the model by the mean of the buffered deltas, each scaled by its staleness.

    Attributes:
        buffer: K, answers that make a step.
        eta: Server learning rate eta_g.
    """

    buffer: Annotated[int, Meta(ge=1, le=100_000)] = 10
    eta: Annotated[float, Meta(gt=0)] = 1.0

    @property
    def buffered(self) -> int:
        return self.buffer

    def step(self, state: ServerState, delta: Parameters) -> ServerState:
        params = tree_map(lambda x, d: x + self.eta * d, state.params, delta)
        return ServerState(params, round=state.round + 1)
