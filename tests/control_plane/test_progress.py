from __future__ import annotations

import pytest

from control_plane.progress import Progress, after_event, round_ahead
from sharing.object_store import digest_of
from workflows.causes import Cause, CauseCode
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

D = digest_of(b"")


def finished(round_: int, loss: float | None = 0.5, **metrics: float) -> RoundFinished:
    return RoundFinished(
        number=1,
        at=0,
        round=round_,
        rounds=3,
        sites=1,
        dropped=0,
        loss=loss,
        metrics=metrics,
        bytes_up=1,
        bytes_down=1,
        seconds=1,
        model=D,
        checkpoint=D,
        transcript=D,
    )


def at(phase: Phase, round_: int = 0) -> Progress:
    return Progress(phase, "something", round_, None, {})


@pytest.mark.parametrize(
    ("before", "step", "event", "phase", "waits_for"),
    [
        (
            at(Phase.PROVISIONING),
            "federate",
            StepStarted(number=1, at=0),
            "recruiting",
            "the first round",
        ),
        (
            at(Phase.PROVISIONING, 2),
            "federate",
            StepStarted(number=1, at=0),
            "recruiting",
            "round 3 of 3",
        ),
        (
            at(Phase.RECRUITING),
            "federate",
            Waiting(number=1, at=0, reason="2 of 5"),
            "recruiting",
            "2 of 5",
        ),
        (
            at(Phase.RECRUITING),
            "federate",
            Waiting(number=1, at=0, reason=""),
            "recruiting",
            "something",
        ),
        (
            at(Phase.RECRUITING),
            "federate",
            RoundStarted(number=1, at=0, round=1, cohort=4),
            "running",
            "round 1 of 3",
        ),
        (at(Phase.RUNNING), "federate", finished(1), "running", "round 2 of 3"),
        (at(Phase.RUNNING), "federate", finished(3), "running", "the trained model"),
        (
            at(Phase.RUNNING),
            "federate",
            SiteDropped(
                number=1, at=0, round=1, site="s", cause=Cause(code=CauseCode.PROGRAM_HUNG)
            ),
            "running",
            "something",
        ),
        (
            at(Phase.RUNNING),
            "federate",
            StepSucceeded(number=1, at=0, manifest=D),
            "finalizing",
            "the ONNX export",
        ),
        (
            at(Phase.PROVISIONING),
            "translate",
            StepStarted(number=1, at=0),
            "finalizing",
            "the ONNX export",
        ),
        (
            at(Phase.FINALIZING),
            "translate",
            StepSucceeded(number=1, at=0, manifest=D),
            "finalizing",
            "the model's card",
        ),
        (
            at(Phase.FINALIZING),
            "publish",
            StepSucceeded(number=1, at=0, manifest=D),
            "finalizing",
            "the results to be verified",
        ),
        (
            at(Phase.RUNNING),
            "federate",
            StepFailed(number=1, at=0, cause=Cause(code=CauseCode.PROGRAM_HUNG)),
            "running",
            "the attempt to end",
        ),
    ],
)
def test_an_event_moves_a_run_on(
    before: Progress, step: StepKind, event: AnyStepEvent, phase: str, waits_for: str
) -> None:
    after = after_event(before, step, event, rounds=3, output=Output())

    assert (after.phase, after.waits_for) == (phase, waits_for)


def test_no_event_leads_back() -> None:
    late = at(Phase.FINALIZING, 3)

    after = after_event(
        late, "federate", RoundStarted(number=1, at=0, round=3, cohort=1), rounds=3, output=Output()
    )

    assert after.phase is Phase.FINALIZING


def test_without_an_export_only_the_signature_is_awaited() -> None:
    event = StepSucceeded(number=1, at=0, manifest=D)

    after = after_event(at(Phase.RUNNING), "federate", event, rounds=3, output=Output(onnx=()))

    assert after.waits_for == "the model's signature"


def test_without_publication_no_card_is_awaited() -> None:
    event = StepSucceeded(number=1, at=0, manifest=D)
    output = Output(publish=False)

    after = after_event(at(Phase.FINALIZING), "translate", event, rounds=3, output=output)

    assert after.waits_for == "the results to be verified"


def test_a_round_without_loss_or_evaluation_leaves_the_last_ones() -> None:
    first = after_event(
        at(Phase.RUNNING), "federate", finished(1, 0.5, accuracy=0.9), rounds=3, output=Output()
    )

    second = after_event(first, "federate", finished(2, None), rounds=3, output=Output())

    assert (second.round, second.loss, second.metrics) == (2, 0.5, {"accuracy": 0.9})


def test_a_round_that_is_done_again_does_not_count_back() -> None:
    after = after_event(at(Phase.RUNNING, 3), "federate", finished(2), rounds=5, output=Output())

    assert after.round == 3


def test_a_long_reason_is_cut() -> None:
    event = Waiting(number=1, at=0, reason="x" * 10_000)

    after = after_event(at(Phase.RUNNING), "federate", event, rounds=3, output=Output())

    assert len(after.waits_for) == 500


@pytest.mark.parametrize(
    ("done", "expected"), [(0, "the first round"), (1, "round 2 of 3"), (3, "the trained model")]
)
def test_the_round_ahead_is(done: int, expected: str) -> None:
    assert round_ahead(done, 3) == expected
