"""Federated optimisers, written once for every runtime.

A strategy is added by adding a module here; it then appears in the API, in the OpenAPI document and
in every runtime.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Union

from strategies.fedavg import FedAvg
from strategies.kinds import kinds_of
from strategies.ring import Ring, RingTooSmall
from strategies.sensitivity import Sensitivity
from strategies.strategy import (
    ROOT,
    ClientHalf,
    LocalResult,
    Partial,
    ServerState,
    SiteShare,
    Strategy,
    digest_of_fold,
    require_memory,
)
from strategies.update import (
    CohortTooSmall,
    EmptyCohort,
    Incompatible,
    ModelUpdate,
    NotFinite,
    OutOfRing,
    Parameters,
    StrategyError,
    UpdateRefused,
)

__all__ = (
    "KINDS",
    "ROOT",
    "AnyStrategy",
    "ClientHalf",
    "CohortTooSmall",
    "EmptyCohort",
    "FedAvg",
    "Incompatible",
    "LocalResult",
    "ModelUpdate",
    "NotFinite",
    "OutOfRing",
    "Parameters",
    "Partial",
    "Ring",
    "RingTooSmall",
    "Sensitivity",
    "ServerState",
    "SiteShare",
    "Strategy",
    "StrategyError",
    "UpdateRefused",
    "digest_of_fold",
    "require_memory",
)

KINDS = kinds_of(Strategy, __name__, __path__)

if TYPE_CHECKING:
    AnyStrategy = Strategy
else:
    AnyStrategy = Union[tuple(KINDS.values())]  # noqa: UP007 - built at run time
