"""The shape of a strategy: a frozen value that folds updates and advances a server state.

A round on the server is a streaming fold, ``zero`` then ``accumulate`` per update, with ``merge``
for partial folds of shards, then ``finish`` to one mean delta and ``step`` to the next state. Sums
live in the fixed-point ring (``strategies.ring``), so order, shards and workers do not show in the
result.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import msgspec
import numpy as np
from numpy.typing import NDArray

from strategies.ring import Ring
from strategies.update import EmptyCohort, Incompatible, ModelUpdate, Parameters


@dataclass(frozen=True, slots=True, eq=False)
class ServerState:
    """Everything the server carries between rounds, and all of a checkpoint.

    Attributes:
        params: Global model.
        moments: Optimiser memory by the paper's symbol, each shaped like ``params``.
        round: Rounds completed; 0 before the first.
    """

    params: Parameters
    moments: Mapping[str, Parameters] = field(default_factory=dict)
    round: int = 0


@dataclass(slots=True, eq=False)
class Partial:
    """A fold under way: the one value here that is built up in place, by its owner alone.

    Attributes:
        round: Round whose updates are folded.
        sums: Weighted sums in the ring, by layer (empty for folds that need the updates themselves).
        kept: Updates in the ring by site, for folds that are not sums; empty for the others.
        weight: Sum of the integer weights.
        num_updates: Updates folded.
    """

    round: int
    sums: dict[str, NDArray[np.int64]]
    kept: dict[str, dict[str, NDArray[np.int64]]]
    weight: int = 0
    num_updates: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class ClientHalf:
    """What a strategy asks of the local training; one trainer per framework applies it.

    Attributes:
        proximal_mu: Weight mu of the proximal term mu/2 * ||w - w_global||^2; 0 for none.
    """

    proximal_mu: float = 0.0


class Strategy(
    msgspec.Struct,
    frozen=True,
    kw_only=True,
    forbid_unknown_fields=True,
    tag_field="kind",
    tag=str.lower,
):
    """A federated optimiser as its own specification.

    Fields are the hyperparameters a developer may set in a job; the lower-cased class name is its
    ``kind``. Methods are pure but for the ``Partial`` they are handed, so a run resumes from any
    ``ServerState`` and every runtime computes the same model.
    """

    def init(self, params: Parameters) -> ServerState:
        """State before the first round."""
        return ServerState(params)

    def client_half(self) -> ClientHalf:
        """What local training must add; nothing, unless a subclass knows better."""
        return ClientHalf()

    def zero(self, state: ServerState) -> Partial:
        """The empty fold of the round after ``state``."""
        sums = {name: np.zeros(x.shape, np.int64) for name, x in state.params.items()}
        return Partial(round=state.round + 1, sums=sums, kept={})

    def accumulate(self, partial: Partial, update: ModelUpdate, ring: Ring) -> Partial:
        """Fold one update into ``partial``, which is changed and returned; weighted by examples.

        On an error ``partial`` is what it was before.

        Raises:
            UpdateRefused: NaN or infinity, beyond the ring, other layers, another round.
        """
        require_round(partial, update)
        encoded = ring.encode(update, {n: s.shape for n, s in partial.sums.items()})
        for name, q in encoded.items():
            partial.sums[name] += q * update.num_examples
        partial.weight += update.num_examples
        partial.num_updates += 1
        return partial

    def merge(self, left: Partial, right: Partial) -> Partial:
        """The fold of both; ``left`` is changed and returned, in any order to the same bits.

        Raises:
            ValueError: They are folds of different rounds or models.
        """
        raise NotImplementedError

    def finish(self, partial: Partial, ring: Ring) -> Parameters:
        """One delta out of the cohort's, in float64.

        Raises:
            EmptyCohort: Nothing was folded.
            CohortTooSmall: Fewer updates than this fold needs.
        """
        if not partial.num_updates:
            raise EmptyCohort(f"no update came in round {partial.round}")
        return {name: ring.decode(q, partial.weight) for name, q in partial.sums.items()}

    def step(self, state: ServerState, delta: Parameters) -> ServerState:
        """State after the round whose combined, and by then private, delta is ``delta``."""
        raise NotImplementedError


def require_round(partial: Partial, update: ModelUpdate) -> None:
    """Raise unless ``update`` answers the round that ``partial`` folds.

    Raises:
        Incompatible: It is of another round.
    """
    if update.round != partial.round:
        reason = f"update of round {update.round} came in round {partial.round}"
        raise Incompatible(update.site, reason)
