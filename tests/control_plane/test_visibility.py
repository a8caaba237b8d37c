from __future__ import annotations

from datetime import UTC, datetime

import pytest

from clients.identity import Principal
from clients.resources import CauseView, Event, Job, Role, Round, Visibility, Workflow
from control_plane.visibility import (
    FULL,
    Sight,
    redact_event,
    redact_job,
    redact_round,
    sees_artifact,
    sight_of,
)
from sharing.object_store import digest_of
from tests.control_plane.conftest import job_spec
from workflows.causes import CauseCode
from workflows.run import Desired, Phase

NOW = datetime(2026, 1, 1, tzinfo=UTC)
NOTHING = Sight(models=False, metrics=False, site_names=False, evidence=False)
SECRET = "site-0007"
CAUSE = CauseView(
    code=CauseCode.PROGRAM_RAISED,
    actor="user",
    retryable=False,
    hint="h",
    detail=f"at {SECRET}",
    site=SECRET,
    evidence=f"log of {SECRET}",
)
JOB = Job(
    id="job-1",
    name="n",
    collaboration="c",
    organisation="owner",
    submitted_by="u",
    phase=Phase.RUNNING,
    desired=Desired.RUN,
    waits_for=f"2 of 5; {SECRET}: not approved",
    attempt=1,
    round=1,
    rounds=3,
    loss=0.5,
    metrics={"accuracy": 0.5},
    cause=CAUSE,
    model="model-1",
    plan_digest=digest_of(b""),
    created_at=NOW,
    updated_at=NOW,
    ended_at=None,
    spec=job_spec(),
    workflow=Workflow(namespace="runs", name=SECRET, url=None),
)


def who(organisation: str, *roles: Role) -> Principal:
    return Principal(user="u", name="u", organisation=organisation, roles=frozenset(roles))


@pytest.mark.parametrize(
    ("caller", "visibility", "expected"),
    [
        (
            who("owner", Role.DEVELOPER),
            Visibility(models=("x",), metrics=("x",), site_names=("x",)),
            "full",
        ),
        (who("owner", Role.AUDITOR), Visibility(), "models metrics site_names"),
        (who("partner", Role.DEVELOPER), Visibility(), "models metrics site_names"),
        (who("partner", Role.OPERATOR), Visibility(), "full"),
        (who("partner", Role.OPERATOR), Visibility(site_names=("x",)), "models metrics"),
        (who("partner", Role.OPERATOR), Visibility(models=("x",)), "metrics site_names evidence"),
        (who("partner", Role.OPERATOR), Visibility(metrics=("partner",)), "full"),
    ],
)
def test_a_caller_sees(caller: Principal, visibility: Visibility, expected: str) -> None:
    sight = sight_of(caller, "owner", visibility)

    names = "models metrics site_names evidence" if expected == "full" else expected
    assert {n for n in Sight.__slots__ if getattr(sight, n)} == set(names.split())


def test_who_sees_everything_gets_the_very_same() -> None:
    assert redact_job(JOB, FULL) is JOB


def test_of_a_job_only_what_may_be_seen_is_left() -> None:
    seen = redact_job(JOB, NOTHING)

    assert SECRET not in repr(seen)
    assert (seen.loss, seen.metrics, seen.model, seen.waits_for) == (None, {}, None, "its sites")
    assert seen.cause is not None
    assert (seen.cause.code, seen.cause.site, seen.cause.hint) == (CAUSE.code, "a site", "h")


def test_a_job_that_waits_for_nothing_still_does() -> None:
    from msgspec.structs import replace

    assert redact_job(replace(JOB, waits_for=""), NOTHING).waits_for == ""


@pytest.mark.parametrize(
    ("fields", "left"),
    [
        (
            {
                "round": 1,
                "site": SECRET,
                "cause": {"code": "x", "site": SECRET, "detail": SECRET, "evidence": SECRET},
            },
            {"round": 1, "site": "a site", "cause": {"code": "x", "site": "a site"}},
        ),
        ({"reason": f"waits for {SECRET}"}, {"reason": "its sites"}),
        (
            {"before": "a", "after": "b", "waits_for": SECRET},
            {"before": "a", "after": "b", "waits_for": "its sites"},
        ),
        (
            {
                "round": 1,
                "loss": 0.5,
                "metrics": {"a": 1},
                "model": "d",
                "checkpoint": "d",
                "bytes_up": 3,
            },
            {"round": 1, "bytes_up": 3},
        ),
        ({"phase": "failed", "cause": None}, {"phase": "failed", "cause": None}),
    ],
)
def test_of_an_event_only_what_may_be_seen_is_left(
    fields: dict[str, object], left: dict[str, object]
) -> None:
    event = Event(id=7, kind="k", at=NOW, attempt=1, fields=fields)

    seen = redact_event(event, NOTHING)

    assert seen == Event(id=7, kind="k", at=NOW, attempt=1, fields=left)
    assert redact_event(event, FULL) is event
    assert event.fields is fields


def test_of_a_round_loss_and_metrics_are_hidden() -> None:
    round_ = Round(
        number=1,
        sites=1,
        dropped=0,
        loss=0.5,
        metrics={"a": 1.0},
        bytes_up=1,
        bytes_down=1,
        seconds=1.0,
        epsilon=None,
        model=digest_of(b""),
        transcript=digest_of(b""),
        at=NOW,
    )

    seen = redact_round(round_, NOTHING)

    assert (seen.loss, seen.metrics, seen.sites) == (None, {}, 1)


@pytest.mark.parametrize(
    ("name", "needs"),
    [
        ("model.safetensors", {"models"}),
        ("model.onnx", {"models"}),
        ("model.json", {"models", "metrics"}),
        ("transcripts.jsonl", {"site_names"}),
        ("anything-else", {"models"}),
    ],
)
def test_an_artifact_needs(name: str, needs: set[str]) -> None:
    for missing in (None, *Sight.__slots__):
        sight = Sight(**{n: n != missing for n in Sight.__slots__})

        assert sees_artifact(name, sight) == (missing not in needs)
