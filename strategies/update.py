"""Model updates as named arrays: the algebra every strategy is written in.

``Parameters`` maps a layer's name to a float array of any shape. Two values are compatible when
their names and shapes agree; nothing here broadcasts, and nothing writes into an argument.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = NDArray[np.floating[Any]]
Parameters: TypeAlias = Mapping[str, Array]


class StrategyError(Exception):
    """A round cannot be aggregated; the run must not continue from it."""


class EmptyCohort(StrategyError):
    """Not one update came."""


class CohortTooSmall(StrategyError):
    """Fewer updates came than the fold needs to mean anything."""


class UpdateRefused(StrategyError):
    """One site's update cannot be folded; the others still can.

    Attributes:
        site: Whose update it is.
        reason: What is wrong with it, in words fit for the round transcript.
    """

    def __init__(self, site: str, reason: str) -> None:
        super().__init__(f"{site}: {reason}")
        self.site = site
        self.reason = reason


class NotFinite(UpdateRefused):
    """A value is NaN or infinite."""


class OutOfRing(UpdateRefused):
    """A value or a weight is larger than the ring was proved for."""


class Incompatible(UpdateRefused):
    """Layer names, shapes or dtypes are not those of the model, or the round is another."""


@dataclass(frozen=True, slots=True, eq=False)
class ModelUpdate:
    """One site's contribution to a round.

    Attributes:
        site: Who sent it.
        round: Round whose question it answers, from 1.
        delta: Local minus global parameters after local training; beside the model's layers, as
            ``VECTOR/LAYER``, those of what else the strategy has travel.
        num_examples: Training examples behind ``delta``, at least 1.
        scalars: What else the strategy wants to know of the site, by the name it gave beforehand.
    """

    site: str
    round: int
    delta: Parameters
    num_examples: int
    scalars: Mapping[str, float] = field(default_factory=dict)


def beside(vector: str, params: Parameters) -> dict[str, Array]:
    """``params`` under the names by which they travel beside the model, as ``VECTOR/LAYER``."""
    return {f"{vector}/{name}": x for name, x in params.items()}


def vector_of(tree: Parameters, vector: str) -> dict[str, Array]:
    """What travels as ``VECTOR/LAYER`` in ``tree``, by layer; empty if nothing does."""
    prefix = f"{vector}/"
    return {n.removeprefix(prefix): x for n, x in tree.items() if n.startswith(prefix)}


def without(tree: Parameters, vector: str) -> dict[str, Array]:
    """``tree`` but for what travels as ``VECTOR/LAYER``."""
    return {name: x for name, x in tree.items() if not name.startswith(f"{vector}/")}


def tree_map(leaf: Callable[..., Array], *trees: Parameters) -> dict[str, Array]:
    """Apply ``leaf`` layer by layer; the result has the dtypes of the first tree.

    Raises:
        ValueError: The trees differ in a layer's name or shape. (Updates were checked when they
            were folded, so this is a bug of the caller.)
    """
    first, *rest = ({name: array.shape for name, array in tree.items()} for tree in trees)
    if any(shapes != first for shapes in rest):
        raise ValueError(f"layers differ: {first} and {rest}")
    return {
        name: np.asarray(leaf(*(tree[name] for tree in trees)), trees[0][name].dtype)
        for name in first
    }
