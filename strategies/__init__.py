"""Federated optimisers, written once for every runtime.

A strategy is added by adding a module here; it then appears in the API, in the OpenAPI document and
in every runtime.
"""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules
from typing import TYPE_CHECKING, Union

from strategies.fedavg import FedAvg
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


def _leaves(cls: type[Strategy]) -> list[type[Strategy]]:
    """Every strategy below ``cls``, in order of definition."""
    return [leaf for sub in cls.__subclasses__() for leaf in (sub, *_leaves(sub))]


for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")

KINDS: dict[str, type[Strategy]] = {
    str(cls.__struct_config__.tag): cls
    for cls in sorted(_leaves(Strategy), key=lambda cls: str(cls.__struct_config__.tag))
    if "is_abstract" not in vars(cls)
}

if TYPE_CHECKING:
    AnyStrategy = Strategy
else:
    AnyStrategy = Union[tuple(KINDS.values())]  # noqa: UP007 - built at run time
