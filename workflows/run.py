"""What can happen to a run, as data: no clock, no database, no engine."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Final


class Phase(enum.StrEnum):
    """Where a run was last seen."""

    PENDING = "pending"
    ADMITTED = "admitted"
    PROVISIONING = "provisioning"
    RECRUITING = "recruiting"
    RUNNING = "running"
    FINALIZING = "finalizing"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_final(self) -> bool:
        """True if nothing can follow."""
        return not SUCCESSORS[self]


class Desired(enum.StrEnum):
    """What the owner wants of a run."""

    RUN = "run"
    CANCELLED = "cancelled"


P = Phase
_ENDS: Final = frozenset({P.FAILED, P.CANCELLED})
SUCCESSORS: Final[Mapping[Phase, frozenset[Phase]]] = {
    P.PENDING: frozenset({P.ADMITTED}) | _ENDS,
    P.ADMITTED: frozenset({P.PROVISIONING}) | _ENDS,
    P.PROVISIONING: frozenset({P.RECRUITING, P.RUNNING, P.FINALIZING, P.SUCCEEDED}) | _ENDS,
    P.RECRUITING: frozenset({P.PROVISIONING, P.RUNNING, P.FINALIZING, P.SUCCEEDED}) | _ENDS,
    P.RUNNING: frozenset({P.PROVISIONING, P.FINALIZING, P.SUCCEEDED}) | _ENDS,
    P.FINALIZING: frozenset({P.PROVISIONING, P.SUCCEEDED}) | _ENDS,
    P.SUCCEEDED: frozenset(),
    P.FAILED: frozenset(),
    P.CANCELLED: frozenset(),
}
"""A lost attempt leads back to Provisioning; a phase too short to be seen may be skipped."""


class IllegalTransition(Exception):
    """A run cannot go from its phase to the one asked for."""


def advance(before: Phase, after: Phase) -> Phase:
    """Return ``after`` if it may follow ``before``.

    Raises:
        IllegalTransition: It may not.
    """
    if after not in SUCCESSORS[before]:
        raise IllegalTransition(f"{before} -> {after}")
    return after
