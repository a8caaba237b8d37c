from __future__ import annotations

import asyncio
from dataclasses import dataclass

import pytest
from msgspec.structs import replace
from sqlalchemy import delete, select

from clients.identity import NotAuthentic, Principal
from clients.resources import Role
from control_plane.admission import submit_job
from control_plane.ingest import (
    Attempt,
    append_log,
    attempt_of,
    get_object,
    put_object,
    take_events,
)
from control_plane.jobs import (
    change_desired,
    get_job,
    list_events,
    list_rounds,
    read_logs,
)
from control_plane.platform import Platform
from control_plane.reconciler import Reconciler
from control_plane.records.tables import JOB, JOB_OBJECT, LOG_PART
from control_plane.refusals import EventGap, Fenced, Forbidden
from sharing.object_store import ObjectCorrupt, ObjectMissing, digest_of
from tests.control_plane.conftest import People, job_spec
from tests.control_plane.scripted_engine import ScriptedEngine, one_chunk
from workflows.causes import Cause, CauseCode
from workflows.events import RoundFinished, RoundStarted, SiteDropped, StepStarted, Waiting
from workflows.run import Desired, Phase

pytestmark = pytest.mark.anyio
STARTED = StepStarted(number=1, at=10.0)
CHECKPOINT, TRANSCRIPT = b"a checkpoint", b"a transcript"
ROUND = RoundFinished(
    number=3,
    at=11.5,
    round=1,
    rounds=3,
    sites=3,
    dropped=1,
    loss=0.5,
    metrics={"accuracy": 0.8},
    bytes_up=10,
    bytes_down=20,
    seconds=1.5,
    model=digest_of(b"a model"),
    checkpoint=digest_of(CHECKPOINT),
    transcript=digest_of(TRANSCRIPT),
)


@dataclass
class Running:
    """A job whose first attempt was handed to its engine."""

    platform: Platform
    who: Principal
    engine: ScriptedEngine
    reconciler: Reconciler
    job: str
    token: str

    async def attempt(self, number: int = 1, token: str | None = None) -> Attempt:
        return await attempt_of(self.platform, token or self.token, self.job, number)

    async def put(self, *contents: bytes) -> None:
        for content in contents:
            attempt = await self.attempt()
            await put_object(self.platform, attempt, digest_of(content), one_chunk(content))


async def start(platform: Platform, who: Principal, engine: ScriptedEngine) -> Running:
    reconciler = Reconciler(platform, engine, lambda: "here")
    job = (await submit_job(platform, who, job_spec(), None)).id
    await reconciler.look()
    token = engine.wrappers[job, 1].credentials.token
    return Running(platform, who, engine, reconciler, job, token)


@pytest.fixture
async def running(platform: Platform, admin: Principal) -> Running:
    return await start(platform, admin, ScriptedEngine())


async def test_events_are_acknowledged_and_mean_something(running: Running) -> None:
    attempt = await running.attempt()
    await running.put(CHECKPOINT, TRANSCRIPT)
    events = [STARTED, RoundStarted(number=2, at=11.0, round=1, cohort=4), ROUND]

    acknowledged = await take_events(running.platform, attempt, "federate", events)

    assert acknowledged == 3
    job = (await get_job(running.platform, running.who, running.job)).value
    assert (job.phase, job.round, job.loss, job.metrics, job.waits_for) == (
        Phase.RUNNING,
        1,
        0.5,
        {"accuracy": 0.8},
        "round 2 of 3",
    )
    [round_] = (await list_rounds(running.platform, running.who, running.job, 0, 10)).items
    assert (round_.number, round_.sites, round_.dropped, round_.seconds) == (1, 3, 1, 1.5)
    told = (await list_events(running.platform, running.who, running.job, 4, 10)).items
    assert [event.kind for event in told] == [
        "step.started",
        "run.transitioned",
        "round.started",
        "run.transitioned",
        "round.finished",
    ]
    assert told[0].at.timestamp() == 10.0
    assert told[-1].fields["step"] == "federate"
    assert "number" not in told[-1].fields


async def test_repeated_events_are_on_record_once(running: Running) -> None:
    attempt = await running.attempt()
    waiting = Waiting(number=2, at=10.0, reason="2 of 5 sites")

    assert await take_events(running.platform, attempt, "federate", [STARTED]) == 1
    assert await take_events(running.platform, attempt, "federate", [STARTED, waiting]) == 2
    before = await get_job(running.platform, running.who, running.job)
    assert await take_events(running.platform, attempt, "federate", [STARTED]) == 2
    assert await take_events(running.platform, attempt, "federate", []) == 2

    assert before.value.waits_for == "2 of 5 sites"
    assert await get_job(running.platform, running.who, running.job) == before


async def test_the_same_events_posted_at_once_are_on_record_once(running: Running) -> None:
    attempt = await running.attempt()

    numbers = await asyncio.gather(
        *(take_events(running.platform, attempt, "federate", [STARTED]) for _ in range(8))
    )

    told = (await list_events(running.platform, running.who, running.job, 0, 50)).items
    assert numbers == [1] * 8
    assert [event.kind for event in told].count("step.started") == 1


@pytest.mark.parametrize("numbers", [(2,), (1, 3), (2, 1)])
async def test_a_gap_is_refused_whole(running: Running, numbers: tuple[int, ...]) -> None:
    attempt = await running.attempt()
    before = await get_job(running.platform, running.who, running.job)
    events = [replace(STARTED, number=number) for number in numbers]

    with pytest.raises(EventGap):
        await take_events(running.platform, attempt, "federate", events)

    assert await get_job(running.platform, running.who, running.job) == before


async def test_steps_count_their_events_apart(running: Running) -> None:
    attempt = await running.attempt()

    assert await take_events(running.platform, attempt, "federate", [STARTED]) == 1
    assert await take_events(running.platform, attempt, "translate", [STARTED]) == 1


async def test_a_round_whose_objects_are_not_stored_is_refused(running: Running) -> None:
    attempt = await running.attempt()
    await running.put(CHECKPOINT)

    with pytest.raises(EventGap, match="not stored"):
        await take_events(running.platform, attempt, "federate", [replace(ROUND, number=1)])

    assert (await list_rounds(running.platform, running.who, running.job, 0, 10)).items == ()


async def test_a_dropped_site_is_told_with_its_cause(running: Running) -> None:
    cause = Cause(code=CauseCode.PROGRAM_HUNG, detail="90 s", site="site-0002")
    dropped = SiteDropped(number=2, at=1.0, round=1, site="site-0002", cause=cause)

    await take_events(running.platform, await running.attempt(), "federate", [STARTED, dropped])

    told = (await list_events(running.platform, running.who, running.job, 0, 50)).items[-1]
    assert told.kind == "site.dropped"
    assert told.fields["cause"]["code"] == "program-hung"


async def test_a_token_is_good_for_its_attempt_alone(
    running: Running, platform: Platform, admin: Principal, people: People
) -> None:
    other = await start(platform, admin, running.engine)

    for token in (other.token, "foedus_nonsense", people.token, ""):
        with pytest.raises(NotAuthentic):
            await attempt_of(platform, token, running.job, 1)
    for job, number in ((running.job, 2), ("job-unknown", 1)):
        with pytest.raises(NotAuthentic):
            await attempt_of(platform, running.token, job, number)


async def test_a_closed_job_takes_nothing_and_records_once_that_somebody_spoke(
    running: Running,
) -> None:
    attempt = await running.attempt()
    await change_desired(running.platform, running.who, running.job, Desired.CANCELLED)
    for _ in range(3):
        await running.reconciler.look()

    with pytest.raises(Fenced):
        await take_events(running.platform, attempt, "federate", [STARTED])
    with pytest.raises(Fenced):
        await put_object(running.platform, attempt, digest_of(b"late"), one_chunk(b"late"))
    for _ in range(3):
        with pytest.raises(Fenced):
            await running.attempt()

    told = (await list_events(running.platform, running.who, running.job, 0, 50)).items
    late = [event for event in told if event.kind == "late.refused"]
    assert [(event.attempt, event.fields) for event in late] == [(1, {"attempt": 1})]
    assert [event.id for event in told] == list(range(1, len(told) + 1))


async def test_a_superseded_attempt_is_fenced_and_its_successor_is_heard(
    running: Running,
) -> None:
    running.engine.lose[1] = 0
    await running.engine.play(running.platform)
    while (running.job, 2) not in running.engine.wrappers:
        await running.reconciler.look()
        await asyncio.sleep(0.005)

    with pytest.raises(Fenced):
        await running.attempt()

    token = running.engine.wrappers[running.job, 2].credentials.token
    successor = await running.attempt(2, token)
    assert await take_events(running.platform, successor, "federate", [STARTED]) == 1
    told = (await list_events(running.platform, running.who, running.job, 0, 50)).items
    assert [(e.kind, e.attempt) for e in told[-3:]] == [
        ("late.refused", 1),
        ("step.started", 2),
        ("run.transitioned", 2),
    ]


async def test_an_attempt_that_is_asked_to_stop_is_still_heard(running: Running) -> None:
    await change_desired(running.platform, running.who, running.job, Desired.CANCELLED)

    await take_events(running.platform, await running.attempt(), "federate", [STARTED])

    job = (await get_job(running.platform, running.who, running.job)).value
    assert (job.phase, job.waits_for) == (Phase.RECRUITING, "the run to stop")


async def test_an_object_comes_back_as_it_was_put(running: Running) -> None:
    attempt = await running.attempt()
    digest = digest_of(b"content")

    first = await put_object(running.platform, attempt, digest, one_chunk(b"content"))
    second = await put_object(running.platform, attempt, digest, one_chunk(b"content"))

    assert (first[1], second[1]) == (True, False)
    stored, chunks = await get_object(running.platform, attempt, digest)
    assert stored.size_bytes == 7
    assert [chunk async for chunk in chunks] == [b"content"]


async def test_objects_of_another_job_do_not_exist(
    running: Running, platform: Platform, admin: Principal
) -> None:
    other = await start(platform, admin, running.engine)
    await other.put(b"content")
    attempt, digest = await running.attempt(), digest_of(b"content")

    with pytest.raises(ObjectMissing):
        await get_object(platform, attempt, digest)


async def test_bytes_with_another_digest_are_refused(running: Running) -> None:
    attempt = await running.attempt()

    with pytest.raises(ObjectCorrupt):
        await put_object(running.platform, attempt, digest_of(b"this"), one_chunk(b"that"))

    assert await running.platform.database.rows(select(JOB_OBJECT.c.digest)) == []


async def printed(running: Running, **arguments: object) -> bytes:
    """The logs as they are read."""
    arguments.setdefault("step", "federate")
    stream = await read_logs(
        running.platform,
        running.who,
        running.job,
        **arguments,  # type: ignore[arg-type]
    )
    return b"".join([chunk async for chunk in stream])


async def test_a_log_grows_by_offset_and_repetitions_change_nothing(running: Running) -> None:
    attempt = await running.attempt()

    async def append(offset: int, content: bytes) -> int:
        return await append_log(running.platform, attempt, "federate", offset, content)

    assert await append(0, b"one\n") == 4
    assert await append(0, b"one\n") == 4
    assert await append(2, b"e\ntwo\n") == 8
    assert await append(100, b"too far") == 8
    assert await append(8, b"three\n") == 14
    assert await printed(running) == b"one\ntwo\nthree\n"


async def test_a_part_that_comes_many_times_at_once_is_stored_once(running: Running) -> None:
    attempt = await running.attempt()
    block = b"a line\n" * 1000

    ends = await asyncio.gather(
        *(
            append_log(running.platform, attempt, "federate", 0, block[: 700 * times])
            for times in range(1, 11)
        )
    )

    while (end := max(ends)) < len(block):
        ends = [await append_log(running.platform, attempt, "federate", end, block[end:])]
    assert await printed(running) == block


async def test_a_log_is_bounded_and_its_writer_is_not_held_up(running: Running) -> None:
    attempt = await running.attempt()
    block, offset = b"x" * (1 << 20), 0

    for _ in range(6):
        offset = await append_log(running.platform, attempt, "federate", offset, block)

    assert offset == 6 << 20
    assert len(await printed(running)) == (4 << 20) + (1 << 16)


async def test_logs_are_read_by_step_and_from_their_end(running: Running) -> None:
    attempt = await running.attempt()
    await append_log(running.platform, attempt, "federate", 0, b"trained\n")
    await append_log(running.platform, attempt, "translate", 0, b"exported\n")

    assert (
        await printed(running, step=None)
        == b"==> federate <==\ntrained\n==> translate <==\nexported\n"
    )
    assert await printed(running, step="translate") == b"exported\n"
    assert await printed(running, step="federate", tail=3) == b"ed\n"
    assert await printed(running, step="federate", tail=0) == b""
    assert await printed(running, step="publish") == b""


async def test_the_end_of_a_log_is_read_across_its_parts(running: Running) -> None:
    attempt = await running.attempt()
    lines = [b"line %04d\n" % i for i in range(40)]
    whole, offset = b"".join(lines), 0
    for line in lines:
        offset = await append_log(running.platform, attempt, "federate", offset, line)

    for tail in (1, 9, 10, 11, 105, 399, 400, 401):
        assert await printed(running, tail=tail) == whole[-tail:]


async def test_the_logs_of_a_job_go_with_it(running: Running) -> None:
    attempt = await running.attempt()
    await append_log(running.platform, attempt, "federate", 0, b"trained\n")

    async with running.platform.database.writing() as transaction:
        await transaction.execute(delete(JOB).where(JOB.c.id == running.job))

    assert await running.platform.database.rows(select(LOG_PART)) == []


async def test_logs_are_for_those_who_may_read_them(running: Running, people: People) -> None:
    auditor = await people.add("home", "ada", Role.AUDITOR)

    with pytest.raises(Forbidden):
        await read_logs(running.platform, auditor, running.job)
