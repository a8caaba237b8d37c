"""The shape of a strategy: a frozen value that folds updates and advances a server state.

A round on the server is a streaming fold, ``zero`` then ``accumulate`` per update, with ``merge``
for partial folds of shards, then ``finish`` to one mean delta and ``step`` to the next state. Sums
live in the fixed-point ring (``strategies.ring``), so order, shards and workers do not show in the
result.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Final, Literal, TypeAlias

import msgspec
import numpy as np
from numpy.typing import NDArray

from strategies.ring import Ring
from strategies.sensitivity import Sensitivity, of_sum
from strategies.spill import Spill
from strategies.tiles import Tile, each, tiles_of
from strategies.update import (
    Array,
    CohortTooSmall,
    EmptyCohort,
    Incompatible,
    ModelUpdate,
    NotFinite,
    OutOfRing,
    Parameters,
)

STEP_TILE: Final = 1 << 18  # entries; a step has some float64 temporaries for each
DIGEST_TILE: Final = 1 << 18
Scalar: TypeAlias = Literal["steps", "rate", "normaliser", "loss_before"]
"""What a trainer can tell of a site's training beside the delta: the number of local steps, the
rate of the local optimiser, the norm of its gradients' coefficients (``strategies.fednova``), and
the mean loss of the global model on the site's training examples."""
SCALARS: Final = "scalars"
ROOT: Final = "root"
"""Name under which the server trains on clean data of its own; no site may have it."""


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
        kept: Updates in the ring by site, on disk, for folds that are not sums; empty for others.
        sites: Whose updates were folded.
        weight: Sum of the integer weights.
        population: Sites that the cohort was drawn from; 0 where all of them are in the fold.
        model: That the updates answer; empty for folds that need not know it.
        epochs: That the sites were asked to train.
    """

    round: int
    shapes: Mapping[str, tuple[int, ...]]
    sums: dict[str, NDArray[np.int64]] = field(default_factory=dict)
    kept: Spill = field(default_factory=Spill)
    sites: set[str] = field(default_factory=set)
    weight: int = 0
    population: int = 0
    model: Parameters = field(default_factory=dict)
    epochs: int = 1

    @property
    def num_updates(self) -> int:
        """Updates folded."""
        return len(self.sites)

    @property
    def share(self) -> float:
        """Folded updates as a share of all sites."""
        return self.num_updates / max(self.population, self.num_updates)


@dataclass(frozen=True, slots=True, eq=False)
class ClientHalf:
    """What a strategy asks of the local training; one trainer per framework applies it.

    Attributes:
        proximal_mu: Weight mu of the proximal term mu/2 * ||w - w_global||^2; 0 for none.
        correction: Added to the gradient of every local step, by layer; a layer that is not named
            has none. None where the strategy corrects nothing.
        scalars: What the trainer is to tell.
        wants_gradient: Whether it is also to tell the gradient of the local loss at the global
            model.
        wants_gradients_only: Whether a layer that no gradient moves (running statistics) must not
            travel, as the server's arithmetic means nothing for it.
    """

    proximal_mu: float = 0.0
    correction: Parameters | None = None
    scalars: tuple[Scalar, ...] = ()
    wants_gradient: bool = False
    wants_gradients_only: bool = False

    @property
    def reaches_in(self) -> bool:
        """True if it must know or change what happens within the local loop."""
        return self.proximal_mu > 0 or self.correction is not None or self.counts_steps

    @property
    def counts_steps(self) -> bool:
        """True if it must be told how many steps the local loop took."""
        return bool({"steps", "normaliser"} & set(self.scalars))


@dataclass(frozen=True, slots=True, eq=False)
class LocalResult:
    """What local training gave, at the site.

    Attributes:
        delta: Local minus global parameters.
        scalars: What the client half asked for.
        gradient: Of the local loss at the global model, if the client half asked for it.
        trainable: Layers that gradients move.
    """

    delta: Parameters
    scalars: Mapping[str, float] = field(default_factory=dict)
    gradient: Parameters = field(default_factory=dict)
    trainable: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True, eq=False)
class SiteShare:
    """What a site makes of its training.

    Attributes:
        sent: The delta and what travels beside it.
        memory: What the site keeps until it is drawn again; it never leaves the site.
    """

    sent: Parameters
    memory: Parameters = field(default_factory=dict)


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
        is_coordinatewise: True if an entry of ``step`` depends on the same entry of its arguments
            alone, so that a long model may be stepped tile by tile.
        is_sum: True if a fold is nothing but sums, so that whoever trains several sites may send
            the fold of them in place of their updates.
        vectors: What has the shape of the model and travels up beside the delta.
        scalars: What a site tells beside its arrays.
        sums: Numbers that are folded beside the arrays.
        wants_root: Whether the server trains on clean data of its own, as ``ROOT``.
        local_optimizers: Which local optimisers the source's algorithm holds for: any, SGD with or
            without momentum, or SGD without.
        model_kind: What a model is to it: arrays of real numbers whose shapes stay, or an ensemble
            of trees that grows.
        takes_turns: Whether one site a round trains, each in its turn.
    """

    is_coordinatewise: ClassVar[bool] = True
    is_sum: ClassVar[bool] = True
    vectors: ClassVar[tuple[str, ...]] = ()
    scalars: ClassVar[tuple[Scalar, ...]] = ()
    sums: ClassVar[tuple[str, ...]] = ()
    wants_root: ClassVar[bool] = False
    local_optimizers: ClassVar[Literal["any", "sgd", "plain-sgd"]] = "any"
    model_kind: ClassVar[Literal["arrays", "trees"]] = "arrays"
    takes_turns: ClassVar[bool] = False

    @property
    def min_updates(self) -> int:
        """Fewest updates that mean anything to this fold."""
        return 1

    @property
    def has_memory(self) -> bool:
        """Whether a site keeps something from one round to the next."""
        return False

    @property
    def buffered(self) -> int | None:
        """Answers that make a step, whoever is still training; None if it waits for a cohort."""
        return None

    def init(self, params: Parameters) -> ServerState:
        """State before the first round."""
        return ServerState(params)

    def client_half(self) -> ClientHalf:
        """What local training must add; nothing, unless a subclass knows better."""
        return ClientHalf()

    def offer(self, state: ServerState) -> Parameters:
        """What a site is given: the model, and beside it what else the strategy has travel."""
        return state.params

    def model_of(self, offered: Parameters) -> Parameters:
        """The model in what ``offer`` gave."""
        return offered

    def half_at(self, offered: Parameters, memory: Parameters) -> ClientHalf:
        """What local training must add at a site that was given ``offered`` and kept ``memory``.

        Args:
            offered: What ``offer`` gave.
            memory: What the site kept when it was last drawn; empty before.
        """
        return self.client_half()

    def conclude(self, local: LocalResult, offered: Parameters, memory: Parameters) -> SiteShare:
        """What the site sends and keeps, given what it was given, kept and found in training."""
        return SiteShare(local.delta)

    def sensitivity(self, clip_norm: float, max_weight: int) -> Sensitivity:
        """Most by which one site, there or not, changes what is folded, in L2.

        Args:
            clip_norm: To which the L2 norm of each vector that a site sends was clipped, all layers
                together; and that of the server's own, where it trains too.
            max_weight: Largest weight that one site may have.
        """
        return of_sum(max_weight, delta=max_weight * clip_norm)

    def folded(self, params: Parameters) -> dict[str, tuple[int, ...]]:
        """Shapes of all that is folded of an update of a model like ``params``."""
        model = {name: x.shape for name, x in params.items()}
        further = {f"{v}/{name}": shape for v in self.vectors for name, shape in model.items()}
        numbers: dict[str, tuple[int, ...]] = {f"{SCALARS}/{name}": () for name in self.sums}
        if twice := sorted((model.keys() & further.keys()) | (model.keys() & numbers.keys())):
            raise ValueError(f"the model has layers of reserved names: {', '.join(twice)}")
        return model | further | numbers

    def contribution(self, update: ModelUpdate, ring: Ring) -> ModelUpdate:
        """What of ``update`` is folded: ``folded`` layers, and their weight as ``num_examples``.

        Everything a strategy folds lies in one vector in the ring, with one weight: numbers are
        layers of no dimension, brought to the scale of the others. So what ``Ring.check`` proves
        holds for them too, partial sums merge, and a site could mask what it adds.

        Raises:
            UpdateRefused: A scalar is missing, or beyond what the strategy takes.
        """
        return update

    def zero(self, state: ServerState) -> Partial:
        """The empty fold of the round after ``state``."""
        shapes = self.folded(state.params)
        sums = {name: np.zeros(shape, np.int64) for name, shape in shapes.items()}
        return Partial(round=state.round + 1, shapes=shapes, sums=sums)

    def accumulate(self, partial: Partial, update: ModelUpdate, ring: Ring) -> Partial:
        """Fold one update into ``partial``, which is changed and returned.

        It is weighted by examples, unless ``contribution`` says otherwise.

        On an error ``partial`` is what it was before.

        Raises:
            UpdateRefused: NaN or infinity, beyond the ring, other layers, another round, or a
                second update of the same site.
        """
        require_expected(partial, update)
        ring.require_weight(update)  # as the site says it, which ``contribution`` may not keep
        folded = self.contribution(update, ring)
        ring.add(folded, partial.sums)
        return count(partial, folded)

    def merge(self, left: Partial, right: Partial) -> Partial:
        """The fold of both; ``left`` is changed and returned, in any order to the same bits.

        On an error ``left`` is what it was before.

        Raises:
            ValueError: They are folds of different rounds or models, or share a site.
        """
        require_disjoint(left, right)
        for name, total in left.sums.items():
            np.add(total, right.sums[name], out=total)
        left.kept.take(right.kept)
        left.sites |= right.sites
        left.weight += right.weight
        return left

    def finish(self, partial: Partial, ring: Ring) -> Parameters:
        """One delta out of the cohort's, and what else ``step`` takes, in float64.

        Raises:
            EmptyCohort: Nothing was folded.
            CohortTooSmall: Fewer updates than this fold needs.
        """
        require_enough(partial, self.min_updates)
        delta = {name: np.empty(shape) for name, shape in partial.shapes.items()}
        flat = {name: x.reshape(-1) for name, x in delta.items()}
        finish = self.tile_finisher(partial, ring)

        def fill(tile: Tile) -> None:
            flat[tile.layer][tile.run] = finish(tile)

        for _ in each(partial.shapes, self.tile_length(partial), fill):
            pass
        return delta

    def blend(self, state: ServerState, starts: Sequence[tuple[Parameters, int]]) -> ServerState:
        """State that ``step`` goes from, where answers are to earlier questions.

        Args:
            state: After the round before.
            starts: Of each folded answer, the model that its site was given, and its staleness.
        """
        return state

    def step(self, state: ServerState, delta: Parameters) -> ServerState:
        """State after the round whose combined, and by then private, delta is ``delta``."""
        raise NotImplementedError

    def advance(self, state: ServerState, partial: Partial, ring: Ring) -> ServerState:
        """``step`` of what ``finish`` gives, to the same bits, with no whole delta in memory.

        The new model takes the place of the sums, so ``partial`` is used up: afterwards it holds
        nothing.

        Raises:
            EmptyCohort: Nothing was folded.
            CohortTooSmall: Fewer updates than this fold needs.
        """
        require_enough(partial, self.min_updates)
        trees = (state.params, *state.moments.values())
        if not self.is_coordinatewise or any(_shapes(t) != partial.shapes for t in trees):
            after = self.step(state, self.finish(partial, ring))
            partial.sums.clear()
        else:
            after = self._advance_tiles(state, partial, ring)
        partial.kept.wipe()
        return after

    def tile_finisher(self, partial: Partial, ring: Ring) -> Callable[[Tile], Array]:
        """How ``finish`` gets each flat tile of the delta, in float64."""
        return lambda tile: ring.decode(
            partial.sums[tile.layer].reshape(-1)[tile.run], partial.weight
        )

    def tile_length(self, partial: Partial) -> int:
        """Entries of a tile when the fold is finished."""
        return STEP_TILE

    def _advance_tiles(self, state: ServerState, partial: Partial, ring: Ring) -> ServerState:
        params: dict[str, Array] = {}
        moments: dict[str, dict[str, Array]] = {symbol: {} for symbol in state.moments}
        finish = self.tile_finisher(partial, ring)
        for name, layer in state.params.items():
            old = layer.reshape(-1)
            flat = {symbol: tree[name].reshape(-1) for symbol, tree in state.moments.items()}
            new = {symbol: np.empty(x.size, x.dtype) for symbol, x in flat.items()}
            total = partial.sums.get(name, np.empty(0, np.int64))
            out = _place(total, old)

            def step(
                tile: Tile, old: Array = old, flat: Mapping[str, Array] = flat
            ) -> tuple[Tile, ServerState]:
                cut = {symbol: {tile.layer: m[tile.run]} for symbol, m in flat.items()}
                before = ServerState({tile.layer: old[tile.run]}, cut, state.round)
                return tile, self.step(before, {tile.layer: finish(tile)})

            for tile, after in each({name: partial.shapes[name]}, self.tile_length(partial), step):
                out[tile.run] = after.params[name]
                for symbol, x in new.items():
                    x[tile.run] = after.moments[symbol][name]
            if partial.sums.pop(name, None) is not None:
                words = -(-old.nbytes // total.itemsize)
                try:  # give the rest back; it must be here, for resize counts who looks at the sum
                    del out
                    total.resize(words)
                except ValueError:
                    total = total.reshape(-1)[:words].copy()
                out = total.view(old.dtype)[: old.size]
            params[name] = out.reshape(partial.shapes[name])
            for symbol, x in new.items():
                moments[symbol][name] = x.reshape(partial.shapes[name])
        return ServerState(params, moments, state.round + 1)


def _shapes(tree: Parameters) -> dict[str, tuple[int, ...]]:
    return {name: x.shape for name, x in tree.items()}


def _place(total: NDArray[np.int64], old: Array) -> Array:
    """Where the successor of ``old`` is written: over its own sum, if it has one.

    It is never longer than the sum, and is written from the front as the sum is used up.
    """
    if total.size < old.size:
        return np.empty(old.size, old.dtype)
    return total.reshape(-1).view(old.dtype)[: old.size]


def require_expected(partial: Partial, update: ModelUpdate) -> None:
    """Raise unless ``update`` answers the round of ``partial``, as its site's first.

    Raises:
        Incompatible: It is of another round, or its site has answered.
    """
    if update.round != partial.round:
        reason = f"update of round {update.round} came in round {partial.round}"
        raise Incompatible(update.site, reason)
    require_first(partial, update)


def require_first(partial: Partial, update: ModelUpdate) -> None:
    """Raise unless ``update`` is its site's first in the round of ``partial``.

    Raises:
        Incompatible: It is not.
    """
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
    asked = [(fold.round, fold.shapes, fold.population) for fold in (left, right)]
    if asked[0] != asked[1]:
        raise ValueError(f"folds of rounds {left.round} and {right.round}, or of different models")
    if twice := left.sites & right.sites:
        raise ValueError(f"both folds hold an update of {', '.join(sorted(twice))}")


def require_memory(site: str, memory: Parameters, params: Parameters) -> None:
    """Raise unless ``memory`` can be kept for ``site``: layers like the model's, all finite.

    Raises:
        Incompatible: Layers, shapes or dtypes differ.
        NotFinite: A value is NaN or infinite.
    """
    kept = {name: (x.shape, x.dtype) for name, x in memory.items()}
    if kept != {name: (x.shape, x.dtype) for name, x in params.items()}:
        raise Incompatible(site, "what it keeps has other layers than the model")
    for name, x in memory.items():
        if not np.isfinite(x).all():
            raise NotFinite(site, f"what it keeps of layer {name} holds NaN or infinity")


def scalar_of(update: ModelUpdate, name: Scalar) -> float:
    """A finite number that the site tells.

    Raises:
        Incompatible: It does not tell it.
        NotFinite: It is NaN or infinite.
    """
    if name not in update.scalars:
        raise Incompatible(update.site, f"it does not tell its {name}")
    value = update.scalars[name]
    if not math.isfinite(value):
        raise NotFinite(update.site, f"{name} is {value}")
    return value


def in_float64(update: ModelUpdate, ring: Ring) -> dict[str, Array]:
    """The delta in float64, after checking it against the ring.

    Raises:
        UpdateRefused: It holds no numbers, or some beyond the ring.
    """
    ring.require(update, {name: x.shape for name, x in update.delta.items()})
    return {name: np.asarray(x, np.float64) for name, x in update.delta.items()}


def scale_of(most: float, ring: Ring) -> float:
    """Power of two that brings numbers up to ``most`` into the range of the ring's entries."""
    return 2.0 ** math.floor(math.log2(ring.magnitude / most))


def as_layer(name: str, site: str, value: float, most: float, ring: Ring) -> dict[str, Array]:
    """A number as the layer that is folded beside the model's.

    Raises:
        OutOfRing: It is larger than ``most``.
    """
    if abs(value) > most:
        raise OutOfRing(site, f"{name} is {value:g}, beyond {most:g}")
    return {f"{SCALARS}/{name}": np.array(value * scale_of(most, ring))}


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

    It covers names and shapes of the model's layers, weight and number of updates, and every
    integer of the sums (or, for kept updates, their sites and integers), in sorted order as
    little-endian int64.
    """
    layers = sorted(partial.shapes.items())
    sites = sorted(partial.kept)
    header = ("foedus-fold-1", layers, partial.weight, partial.num_updates, sites)
    digest = hashlib.sha256(msgspec.json.encode(header) + b"\n")
    for name in sorted(partial.sums):
        digest.update(np.ascontiguousarray(partial.sums[name], "<i8").reshape(-1).data)
    for site in sites:
        update = partial.kept[site]
        for tile in tiles_of(update.sizes, DIGEST_TILE):
            kept = update.read(tile.layer, tile.start, tile.stop)
            digest.update(kept.astype("<i8").data)
    return f"sha256:{digest.hexdigest()}"
