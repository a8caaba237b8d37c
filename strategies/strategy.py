"""The shape of a strategy: a frozen value that folds updates and advances a server state.

A round on the server is a streaming fold, ``zero`` then ``accumulate`` per update, with ``merge``
for partial folds of shards, then ``finish`` to one mean delta and ``step`` to the next state. Sums
live in the fixed-point ring (``strategies.ring``), so order, shards and workers do not show in the
result.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from strategies.ring import Ring
from strategies.update import CohortTooSmall, EmptyCohort, Incompatible, ModelUpdate, Parameters


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
        shapes: Of the model's layers, by name.
        sums: Weighted sums in the ring, by layer; empty for folds that need the updates.
        kept: Updates in the ring by site, for folds that are not sums; empty for the others.
        sites: Whose updates were folded.
        weight: Sum of the integer weights.
    """

    round: int
    shapes: Mapping[str, tuple[int, ...]]
    sums: dict[str, NDArray[np.int64]] = field(default_factory=dict)
    kept: dict[str, dict[str, NDArray[np.int64]]] = field(default_factory=dict)
    sites: set[str] = field(default_factory=set)
    weight: int = 0

    @property
    def num_updates(self) -> int:
        """Updates folded."""
        return len(self.sites)


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

    Attributes:
        min_updates: Fewest updates that mean anything to this fold.
    """

    min_updates: ClassVar[int] = 1

    def init(self, params: Parameters) -> ServerState:
        """State before the first round."""
        return ServerState(params)

    def client_half(self) -> ClientHalf:
        """What local training must add; nothing, unless a subclass knows better."""
        return ClientHalf()

    def zero(self, state: ServerState) -> Partial:
        """The empty fold of the round after ``state``."""
        shapes = {name: x.shape for name, x in state.params.items()}
        sums = {name: np.zeros(shape, np.int64) for name, shape in shapes.items()}
        return Partial(round=state.round + 1, shapes=shapes, sums=sums)

    def accumulate(self, partial: Partial, update: ModelUpdate, ring: Ring) -> Partial:
        """Fold one update into ``partial``, which is changed and returned; weighted by examples.

        On an error ``partial`` is what it was before.

        Raises:
            UpdateRefused: NaN or infinity, beyond the ring, other layers, another round, or a
                second update of the same site.
        """
        require_expected(partial, update)
        ring.add(update, partial.sums)
        return count(partial, update)

    def merge(self, left: Partial, right: Partial) -> Partial:
        """The fold of both; ``left`` is changed and returned, in any order to the same bits.

        On an error ``left`` is what it was before.

        Raises:
            ValueError: They are folds of different rounds or models, or share a site.
        """
        require_disjoint(left, right)
        for name, total in left.sums.items():
            np.add(total, right.sums[name], out=total)
        left.kept.update(right.kept)
        left.sites |= right.sites
        left.weight += right.weight
        return left

    def finish(self, partial: Partial, ring: Ring) -> Parameters:
        """One delta out of the cohort's, in float64.

        Raises:
            EmptyCohort: Nothing was folded.
            CohortTooSmall: Fewer updates than this fold needs.
        """
        require_enough(partial, self.min_updates)
        return {name: ring.decode(q, partial.weight) for name, q in partial.sums.items()}

    def step(self, state: ServerState, delta: Parameters) -> ServerState:
        """State after the round whose combined, and by then private, delta is ``delta``."""
        raise NotImplementedError


def require_expected(partial: Partial, update: ModelUpdate) -> None:
    """Raise unless ``update`` answers the round of ``partial``, as its site's first.

    Raises:
        Incompatible: It is of another round, or its site has answered.
    """
    if update.round != partial.round:
        reason = f"update of round {update.round} came in round {partial.round}"
        raise Incompatible(update.site, reason)
    if update.site in partial.sites:
        raise Incompatible(update.site, f"a second update came in round {partial.round}")


def count(partial: Partial, update: ModelUpdate) -> Partial:
    """Note in ``partial``, which is changed and returned, that ``update`` was folded."""
    partial.sites.add(update.site)
    partial.weight += update.num_examples
    return partial


def require_disjoint(left: Partial, right: Partial) -> None:
    """Raise unless the two are folds of different sites' answers to the same question.

    Raises:
        ValueError: They are not.
    """
    if (left.round, left.shapes) != (right.round, right.shapes):
        raise ValueError(f"folds of rounds {left.round} and {right.round}, or of different models")
    if twice := left.sites & right.sites:
        raise ValueError(f"both folds hold an update of {', '.join(sorted(twice))}")


def require_enough(partial: Partial, minimum: int) -> None:
    """Raise unless at least ``minimum`` updates were folded.

    Raises:
        EmptyCohort: Nothing was.
        CohortTooSmall: Fewer were.
    """
    if not partial.num_updates:
        raise EmptyCohort(f"no update came in round {partial.round}")
    if partial.num_updates < minimum:
        raise CohortTooSmall(
            f"{partial.num_updates} updates came in round {partial.round}, {minimum} are needed"
        )


def digest_of_fold(partial: Partial) -> str:
    """Name of the fold's content: equal for every order, sharding, worker count and runtime.

    It covers names and shapes of the layers, weight and number of updates, and every integer of
    the sums (or, for kept updates, their sites and integers), in sorted order as little-endian
    int64.
    """
    layers = sorted(partial.shapes.items())
    sites = sorted(partial.kept)
    header = ("foedus-fold-1", layers, partial.weight, partial.num_updates, sites)
    digest = hashlib.sha256(msgspec.json.encode(header) + b"\n")
    for tensors in (partial.sums, *(partial.kept[site] for site in sites)):
        for name in sorted(tensors):
            digest.update(np.ascontiguousarray(tensors[name], "<i8").reshape(-1).data)
    return f"sha256:{digest.hexdigest()}"
