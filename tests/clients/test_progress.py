from __future__ import annotations

import io
from datetime import timedelta
from typing import Any

from rich.console import Console

from clients.cli.progress import Progress, advance, begin, line_of, spark, view
from clients.resources import Event
from tests.clients.values import AT, JOB, round_fields


def event(number: int, kind: str, **fields: Any) -> Event:
    at = AT + timedelta(seconds=number)
    return Event(id=number, kind=kind, at=at, attempt=1, fields=fields)


STORY = [
    event(1, "job.submitted", name="digits"),
    event(2, "run.transitioned", before="pending", after="admitted", waits_for="a free slot"),
    event(3, "attempt.started", attempt=1),
    event(4, "round.started", round=1, cohort=3),
    event(5, "site.dropped", round=1, site="site-0002", cause={"code": "program-hung"}),
    event(6, "round.finished", **round_fields(1, loss=2.0, accuracy=0.5)),
    event(7, "attempt.lost", cause={"code": "step-died", "detail": "signal 9"}),
    event(8, "attempt.started", attempt=2),
    event(9, "round.finished", **round_fields(1, loss=2.0, accuracy=0.5)),
    event(10, "round.finished", **round_fields(2, loss=None, accuracy=0.9)),
    event(11, "something.new", whatever=1),
    event(12, "model.published", model="model-1", name="digits"),
    event(13, "run.closed", phase="succeeded", cause=None),
]


def told(story: list[Event]) -> tuple[Progress, list[str]]:
    progress, lines = begin(JOB), []
    for happened in story:
        progress = advance(progress, happened)
        lines.append(line_of(progress, happened))
    return progress, [line for line in lines if line]


def test_a_job_is_told_in_plain_lines() -> None:
    _, lines = told(STORY)

    assert lines == [
        "admitted, waits for a free slot",
        "site-0002 dropped out of round 1 (program-hung)",
        "round 1/2  sites 3  loss 2.0000  accuracy 0.5000  0.25 s",
        "attempt 1 was lost (step-died: signal 9)",
        "attempt 2 goes on from the last round on record",
        "round 1/2  sites 3  loss 2.0000  accuracy 0.5000  0.25 s",
        "round 2/2  sites 3  loss -  accuracy 0.9000  0.25 s",
        "model model-1 is published",
        "succeeded",
    ]


def test_a_round_that_is_repeated_counts_once() -> None:
    progress, _ = told(STORY)

    assert [lap.number for lap in progress.laps] == [1, 2]
    assert progress.attempt == 2
    assert progress.phase == "succeeded"
    assert progress.waits_for == ""


def test_while_it_runs_it_says_what_it_waits_for() -> None:
    waits = [told(STORY[:count])[0].waits_for for count in (0, 2, 4, 6, 10)]

    assert waits == [
        "a free slot",
        "a free slot",
        "round 1 of 2",
        "round 2 of 2",
        "the result",
    ]


def test_the_panel_shows_rounds_and_cannot_be_driven_by_what_others_wrote() -> None:
    job = JOB.__class__(**{**_fields(JOB), "name": "evil\x1b]0;title\x07[bold]name"})
    progress = begin(job)
    for happened in STORY:
        progress = advance(progress, happened)
    console = Console(file=io.StringIO(), width=100, force_terminal=True, color_system=None)

    console.print(view(progress))

    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert "\x1b]0" not in shown
    assert "[bold]name" in shown
    assert "0.9000" in shown
    assert "round 2 of 2" in shown


def _fields(value: Any) -> dict[str, Any]:
    return {name: getattr(value, name) for name in value.__struct_fields__}


def test_every_moment_of_a_job_can_be_shown() -> None:
    for count in range(len(STORY) + 1):
        console = Console(file=io.StringIO(), width=100)

        console.print(view(told(STORY[:count])[0]))


def test_a_curve_spans_from_lowest_to_highest() -> None:
    assert spark([]) == ""
    assert spark([1.0, 1.0]) == "▁▁"
    assert spark([0.0, 0.5, 1.0]) == "▁▅█"
    assert len(spark([0.0] * 100, width=40)) == 40
