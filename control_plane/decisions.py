"""What to do next with a run, from what is on record, what its engine says and what is wanted.

Pure and total: every combination has one answer, those included that should not occur.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from workflows.engine import Activity, Observation
from workflows.run import Desired, Phase


class Action(enum.StrEnum):
    """What the reconciler does next; each can be repeated."""

    WAIT = "wait"
    ADMIT = "admit"
    BEGIN = "begin"
    SUBMIT = "submit"
    STOP = "stop"
    RECORD_LOSS = "record-loss"
    FINALISE = "finalise"
    FAIL = "fail"
    GIVE_UP = "give-up"
    CLOSE_CANCELLED = "close-cancelled"
    SETTLE = "settle"


class Sighting(enum.StrEnum):
    """What is known of a run's newest attempt.

    NONE: there was no attempt yet. OVER: it is on record as lost. UNSTARTED: its engine has never
    started it. The others are what its engine says, where a failure is FAILED if it is for good,
    and LOST is everything after which another attempt may succeed.
    """

    NONE = "none"
    OVER = "over"
    UNSTARTED = "unstarted"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    LOST = "lost"


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """Where a run stands.

    Attributes:
        phase: Where it was last seen.
        desired: What its owner wants.
        sighting: What is known of its newest attempt.
        is_due: Whether the pause after a lost attempt is over.
        has_attempts: Whether it may have another attempt.
    """

    phase: Phase
    desired: Desired
    sighting: Sighting
    is_due: bool
    has_attempts: bool


def sight(observation: Observation | None, *, was_heard: bool) -> Sighting:
    """What an engine's word means for an attempt that is open on record.

    Args:
        observation: What the engine says; None if it knows of no such attempt.
        was_heard: Whether events of the attempt are on record. If so it was started, and an
            engine that does not know of it has lost it: under its number, events of a second
            start would be taken for repetitions.
    """
    if observation is None:
        return Sighting.LOST if was_heard else Sighting.UNSTARTED
    match observation.activity:
        case Activity.RUNNING:
            return Sighting.RUNNING
        case Activity.SUCCEEDED:
            return Sighting.SUCCEEDED
        case Activity.FAILED:
            cause = observation.cause
            is_lost = cause is None or cause.explanation.retryable
            return Sighting.LOST if is_lost else Sighting.FAILED
        case Activity.CANCELLED | Activity.LOST:
            return Sighting.LOST


def decide(standing: Standing) -> Action:
    """Next action for a run that does not wait in line for a slot."""
    if standing.phase.is_final:
        return Action.SETTLE
    if standing.desired is Desired.CANCELLED:
        is_running = standing.sighting is Sighting.RUNNING
        return Action.STOP if is_running else Action.CLOSE_CANCELLED
    match standing.sighting:
        case Sighting.NONE if standing.phase is Phase.PENDING:
            return Action.ADMIT
        case Sighting.NONE:
            return Action.BEGIN
        case Sighting.OVER if not standing.has_attempts:
            return Action.GIVE_UP
        case Sighting.OVER:
            return Action.BEGIN if standing.is_due else Action.WAIT
        case Sighting.UNSTARTED:
            return Action.SUBMIT
        case Sighting.RUNNING:
            return Action.WAIT
        case Sighting.SUCCEEDED:
            return Action.FINALISE
        case Sighting.FAILED:
            return Action.FAIL
        case Sighting.LOST:
            return Action.RECORD_LOSS
