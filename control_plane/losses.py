"""What the end of an attempt means for its run: why it ended, and when another may follow. Pure.

Jobs are rows with their newest attempt (``reconciler.with_attempt``).
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import Row

from control_plane.platform import Rules
from control_plane.views import cause_of
from workflows.causes import Cause, CauseCode
from workflows.engine import Activity, Observation


def pause_s(rules: Rules, fruitless: int, cause: Cause | None) -> float:
    """Between a lost attempt and the next: none after one that got on, longest for a full disk."""
    if cause is not None and cause.code is CauseCode.DISK_FULL:
        return rules.retry_longest_s
    if fruitless == 0:
        return 0.0
    return min(rules.retry_first_s * 2.0 ** (fruitless - 1), rules.retry_longest_s)


def fruitless_after(job: Row[Any], cause: Cause) -> int:
    """Attempts lost in a row without a new round; a full disk is waited for, and not counted."""
    if job.round > job.attempt_first_round:
        return 0
    return int(job.fruitless) + (cause.code is not CauseCode.DISK_FULL)


def cause_of_loss(observation: Observation | None) -> Cause:
    """Why an attempt was lost, of which the engine said this."""
    if observation is None:
        detail = "the engine knows nothing of it any more"
    elif observation.cause is not None:
        return observation.cause
    elif observation.activity is Activity.CANCELLED:
        detail = "it was stopped from outside"
    else:
        detail = "its processes ended without a word"
    return Cause(code=CauseCode.ATTEMPT_LOST, detail=detail)


def failure(observation: Observation | None) -> Cause:
    """Why a run fails, of which the engine said this."""
    if observation is None or observation.cause is None:
        return Cause(code=CauseCode.PLATFORM_BUG, detail="the engine gave no cause")
    return observation.cause


def exhaustion(job: Row[Any]) -> Cause:
    """Why a run fails of which so many attempts in a row got no further."""
    last = cause_of(job.attempt_cause)
    detail = f"{job.fruitless} attempts in a row got no further"
    if last is None:
        return Cause(code=CauseCode.ATTEMPTS_EXHAUSTED, detail=detail)
    why = f"{last.code}: {last.detail}" if last.detail else str(last.code)
    return Cause(
        code=CauseCode.ATTEMPTS_EXHAUSTED,
        detail=f"{detail}; the last one: {why}",
        evidence=last.evidence,
    )
