"""What a step's events mean for the run that it is a step of. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

from workflows.events import (
    AnyStepEvent,
    RoundFinished,
    RoundStarted,
    SiteDropped,
    StepFailed,
    StepStarted,
    StepSucceeded,
    Waiting,
)
from workflows.job import Output
from workflows.plan import StepKind
from workflows.run import Phase

MAX_REASON: Final = 500
VERIFICATION: Final = "the results to be verified"


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run is.

    Attributes:
        phase: Where it was last seen.
        waits_for: What must happen next, for people.
        round: Rounds on record.
        loss: Of the last round that reported one.
        metrics: Of the last evaluation.
    """

    phase: Phase
    waits_for: str
    round: int
    loss: float | None
    metrics: Mapping[str, float]


def after_event(
    before: Progress, step: StepKind, event: AnyStepEvent, *, rounds: int, output: Output
) -> Progress:
    """How far the run is when ``event`` of ``step`` has happened.

    Args:
        before: How far it was.
        step: Whose event it is.
        event: What happened.
        rounds: How many rounds there will be.
        output: What is made of the model.
    """
    match event:
        case StepStarted() if step == "federate":
            return _at(before, Phase.RECRUITING, round_ahead(before.round, rounds))
        case StepStarted():
            return _at(before, Phase.FINALIZING, _work_of(step, output))
        case Waiting(reason=reason):
            return replace(before, waits_for=reason[:MAX_REASON] or before.waits_for)
        case RoundStarted(round=number):
            return _at(before, Phase.RUNNING, f"round {number} of {rounds}")
        case SiteDropped():
            return before
        case RoundFinished(round=number):
            return replace(
                _at(before, Phase.RUNNING, round_ahead(number, rounds)),
                round=max(number, before.round),
                loss=before.loss if event.loss is None else event.loss,
                metrics=event.metrics or before.metrics,
            )
        case StepFailed():
            return replace(before, waits_for="the attempt to end")
        case StepSucceeded():
            following: Mapping[StepKind, str] = {
                "federate": _work_of("translate", output),
                "translate": _work_of("publish", output) if output.publish else VERIFICATION,
                "publish": VERIFICATION,
            }
            return _at(before, Phase.FINALIZING, following[step])


def round_ahead(done: int, rounds: int) -> str:
    """What a run waits for that has ``done`` rounds on record."""
    if done >= rounds:
        return "the trained model"
    return "the first round" if done == 0 else f"round {done + 1} of {rounds}"


def _work_of(step: StepKind, output: Output) -> str:
    match step:
        case "federate":
            return "the trained model"
        case "translate":
            return "the ONNX export" if output.onnx else "the model's signature"
        case "publish":
            return "the model's card"


_ORDER: Final = (
    Phase.PENDING,
    Phase.ADMITTED,
    Phase.PROVISIONING,
    Phase.RECRUITING,
    Phase.RUNNING,
    Phase.FINALIZING,
)


def _at(before: Progress, phase: Phase, waits_for: str) -> Progress:
    """Moved on to ``phase``, or as far as it was if that is further."""
    return replace(before, phase=max(before.phase, phase, key=_ORDER.index), waits_for=waits_for)
