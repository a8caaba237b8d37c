from __future__ import annotations

import itertools
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clients.errors import JobCancelled, JobFailed, NotFound, Unreachable, WaitTimedOut
from clients.event_stream import Message, messages
from clients.resources import CauseView
from tests.clients.scripted_server import Handler, message, problem, serving, stream, value
from tests.clients.values import JOB, SPEC, client, closed, round_fields
from workflows.causes import CauseCode
from workflows.run import Phase

SAMPLE = (
    ": hello\n\n"
    "id: 1\nevent: run.transitioned\ndata: one\n\n"
    "id: 2\r\ndata: two\r\ndata:  lines\r\n\r\n"
    "data: a\u2028b\x85c\x0bd\n\n"
    "unknown: field\nretry: 10\n\n"
    "id: 4\rdata: old macs\r\r"
    "id: 5\ndata: is cut off\n"
).encode()
EXPECTED = [
    Message("1", "run.transitioned", "one"),
    Message("2", "message", "two\n lines"),
    Message("2", "message", "a\u2028b\x85c\x0bd"),
    Message("4", "message", "old macs"),
]


@given(st.lists(st.integers(0, len(SAMPLE)), max_size=12).map(sorted))
def test_messages_do_not_depend_on_how_the_bytes_arrive(cuts: list[int]) -> None:
    edges = [0, *cuts, len(SAMPLE)]
    pieces = [SAMPLE[start:stop] for start, stop in itertools.pairwise(edges)]

    assert list(messages(pieces)) == EXPECTED


def test_messages_arrive_byte_by_byte() -> None:
    assert list(messages(bytes([byte]) for byte in SAMPLE)) == EXPECTED


def submitted() -> bytes:
    return message(1, "job.submitted", name="digits")


def finished(number: int, round_number: int) -> bytes:
    return message(number, "round.finished", **round_fields(round_number))


def over(number: int, phase: str = "succeeded") -> bytes:
    return message(number, "run.closed", phase=phase, cause=None)


def test_a_cut_stream_is_taken_up_after_the_last_whole_event() -> None:
    first = stream(submitted(), finished(2, 1), finished(3, 2)[:40])
    second = stream(finished(3, 2), over(4))

    with (
        serving(value(JOB, 202), first, value(JOB), second) as script,
        client(script.url) as foedus,
    ):
        job = foedus.submit(SPEC)
        events = list(job.events())

    assert [event.id for event in events] == [1, 2, 3, 4]
    streams = [asked for asked in script.asked if asked.path.endswith("/events")]
    assert [asked.headers["last-event-id"] for asked in streams] == ["0", "2"]


def test_a_restarting_server_is_waited_for_in_the_middle_of_a_stream() -> None:
    away = problem(503, "starting", retryable=True)
    first, second = stream(submitted()), stream(finished(2, 1), over(3))

    with (
        serving(value(JOB, 202), first, away, away, value(JOB), second) as script,
        client(script.url) as foedus,
    ):
        events = list(foedus.submit(SPEC).events())

    assert [event.id for event in events] == [1, 2, 3]


def test_repeated_events_are_told_once() -> None:
    again = stream(submitted(), submitted(), finished(2, 1), over(3))

    with serving(value(JOB, 202), again) as script, client(script.url) as foedus:
        events = list(foedus.submit(SPEC).events())

    assert [event.id for event in events] == [1, 2, 3]


def test_following_a_job_whose_last_event_is_known_ends_at_once() -> None:
    ended = closed(Phase.SUCCEEDED)

    with (
        serving(value(ended), stream(), value(ended), stream()) as script,
        client(script.url) as foedus,
    ):
        assert list(foedus.job("job-1").events(after=9)) == []


def test_rounds_come_as_they_finish_each_once() -> None:
    pieces = (submitted(), finished(2, 1), finished(3, 1), finished(4, 2), over(5))

    with serving(value(JOB, 202), stream(*pieces)) as script, client(script.url) as foedus:
        rounds = list(foedus.submit(SPEC).rounds())

    assert [found.number for found in rounds] == [1, 2]
    assert rounds[0].metrics == {"accuracy": 0.9}
    assert rounds[0].seconds == 0.25


def test_rounds_are_live() -> None:
    seen: list[int] = []

    def check_then_finish(handler: Handler) -> None:
        deadline = time.monotonic() + 10
        while not seen and time.monotonic() < deadline:
            time.sleep(0.005)
        handler.wfile.write(over(3) if seen else b"")

    with (
        serving(value(JOB, 202), stream(finished(2, 1), then=check_then_finish)) as script,
        client(script.url) as foedus,
    ):
        for found in foedus.submit(SPEC).rounds():
            seen.append(found.number)

    assert seen == [1]
    assert len(script.asked) == 2


def test_waiting_ends_with_the_job() -> None:
    ended = closed(Phase.SUCCEEDED, model="model-1")

    with (
        serving(value(JOB, 202), stream(submitted(), over(2)), value(ended)) as script,
        client(script.url) as foedus,
    ):
        assert foedus.submit(SPEC).wait().model == "model-1"


def test_waiting_for_a_job_that_fails_says_why() -> None:
    cause = CauseView(
        code=CauseCode.PROGRAM_RAISED, actor="user", retryable=False, hint="Read.", detail="oops"
    )
    ended = closed(Phase.FAILED, cause=cause)

    with (
        serving(value(JOB, 202), stream(over(1, "failed")), value(ended)) as script,
        client(script.url) as foedus,
        pytest.raises(JobFailed, match="oops") as caught,
    ):
        foedus.submit(SPEC).wait()

    assert caught.value.job.cause == cause


def test_waiting_for_a_job_that_is_cancelled_says_so() -> None:
    with (
        serving(
            value(JOB, 202), stream(over(1, "cancelled")), value(closed(Phase.CANCELLED))
        ) as script,
        client(script.url) as foedus,
        pytest.raises(JobCancelled),
    ):
        foedus.submit(SPEC).wait()


def test_heartbeats_do_not_keep_one_waiting_beyond_the_timeout() -> None:
    def beat(handler: Handler) -> None:
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            handler.wfile.write(b": still here\n\n")
            handler.wfile.flush()
            time.sleep(0.01)

    with (
        serving(value(JOB, 202), stream(submitted(), then=beat)) as script,
        client(script.url) as foedus,
    ):
        before = time.monotonic()
        with pytest.raises(WaitTimedOut, match="goes on"):
            foedus.submit(SPEC).wait(timeout_s=0.2)

    assert time.monotonic() - before < 5


def test_silence_does_not_keep_one_waiting_beyond_the_timeout() -> None:
    def silence(handler: Handler) -> None:
        handler.connection.recv(1)  # returns when the client hangs up

    with (
        serving(value(JOB, 202), stream(submitted(), then=silence)) as script,
        client(script.url) as foedus,
        pytest.raises(WaitTimedOut),
    ):
        foedus.submit(SPEC).wait(timeout_s=0.2)


def test_a_server_that_stays_away_is_given_up() -> None:
    with serving(value(JOB, 202)) as script, client(script.url) as foedus:
        job = foedus.submit(SPEC)
    with client(script.url) as foedus, pytest.raises(Unreachable):
        list(type(job)(foedus._transport, job.last).events())


def test_a_job_that_is_not_there_is_not_waited_for() -> None:
    with (
        serving(value(JOB, 202), problem(404, "not-found")) as script,
        client(script.url) as foedus,
        pytest.raises(NotFound),
    ):
        list(foedus.submit(SPEC).events())
